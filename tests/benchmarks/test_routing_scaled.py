"""What routing by energy keeps when it is spread over several routers, lets batch wait, and serves conversations.

    pytest -s tests/benchmarks/test_routing_scaled.py

Fleets, traces and loads are those of ``test_routing.py``; the policy saw the first fifth of a trace and the rest is
served. Simulated: differences between policies stand on composed step times and a fitted power model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.core.demand import DIURNAL
from qplan.models.simulator.fleetfile import make_fleet, read_fleet
from qplan.models.simulator.traffic import Traffic
from qplan.profiles.demands import read_demand
from qplan.solvers.routing.fleet import model_fleet
from qplan.solvers.routing.replaying import ENERGY, Outcome, replay
from qplan.solvers.routing.solving import solve_policy

HERE = Path(__file__).resolve()
FLEETS = ("70B, 22 GPUs", "8B, 8 GPUs")
ROUTERS = (1, 2, 4, 8)
LOADS = (0.2, 0.5, 0.8)
LEAST = "least-outstanding"


def _routing() -> Any:
    """The benchmark of routing: its fleets and traces."""
    spec = importlib.util.spec_from_file_location("routing_benchmark", HERE.parent / "test_routing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


routing = _routing()
pytestmark = routing.pytestmark


@pytest.fixture(scope="module", params=FLEETS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return routing.made(request.param, "chat", tmp_path_factory.mktemp("case"))


def said(one: Outcome) -> str:
    return f"{one.energy_j / 3.6e6:7.3f} kWh, {one.within:6.1%} within"


def test_several_routers_by_engine_metrics(case: Any) -> None:
    routing.show(f"\n{case.name}: energy, all awake")
    for load in LOADS:
        traffic, none = case.traffic(load), routing.zeros(case)
        least = replay(case.model, case.policy, traffic, none, names=[LEAST]).outcomes[0]
        routing.show(f"  {load:.0%}: least requests, one router that sees all: {said(least)}")
        found: dict[tuple[int, float], Outcome] = {}
        for routers in ROUTERS:
            for scrape_s in (0.25, 1.0, np.inf) if routers > 1 else (1.0,):
                (one,) = replay(
                    case.model, case.policy, traffic, none, names=[ENERGY], routers=routers, scrape_s=scrape_s
                ).outcomes
                found[routers, scrape_s] = one
                how = f"engine metrics each {scrape_s:g} s" if np.isfinite(scrape_s) else "no engine metrics"
                routing.show(f"    {routers} routers, {how if routers > 1 else 'sees all'}: {said(one)}")
        alone = found[1, 1.0]
        saved = least.energy_j - alone.energy_j
        for (routers, scrape_s), one in found.items():
            if np.isfinite(scrape_s):
                assert one.energy_j <= alone.energy_j + 0.1 * saved
                assert one.within > alone.within - 0.04 or load > 0.5
                assert routers == 1 or load != 0.5 or one.within > found[routers, np.inf].within - 0.01


DAY_S = 7200.0
"""A day in short: an hour of it takes five minutes."""

CARBON = (*(380.0,) * 7, *(320.0, 260.0, 200.0, 160.0, 140.0, 130.0, 130.0, 140.0, 170.0, 230.0), *(420.0,) * 7)
"""Made up: grams of CO2e per kWh of a grid with much sun."""

BATCH = """
classes:
  - {{name: chat, rate: 5qps, lengths: chat, slo: [p90:ttft=2s, p90:tpot=100ms], models: [{model}], quality: 80%}}
  - {{name: batch, rate: 2qps, lengths: "isl=1500,osl=200", slo: [p90:tpot=200ms], models: [{model}], quality: 80%}}
start: {{time: 30s}}
"""


def test_batch_waits_for_troughs_and_cleaner_hours(tmp_path: Path) -> None:
    name, _, groups = routing.FLEETS["70B, 22 GPUs"]
    (tmp_path / "demand.yaml").write_text(BATCH.format(model=name))
    entries = [{"model": name, "quantization": q, "gpu": gpu, "tp": tp, "count": n} for q, gpu, tp, n in groups]
    (tmp_path / "fleet.json").write_text(json.dumps({"schema_version": 1, "replicas": entries}))
    asked, file = read_demand(tmp_path / "demand.yaml"), read_fleet(tmp_path / "fleet.json")
    model = model_fleet(file, make_fleet(file, asked.profiles), asked)
    hours = (DAY_S / 3600 / len(CARBON),) * len(CARBON)
    demand = replace(
        model.demand,
        hours=hours,
        carbon=CARBON,
        energy_price=(0.0,) * len(hours),
        classes=tuple(replace(one, rate_qps=one.rate_qps * len(hours)) for one in model.demand.classes),
    )
    model = replace(model, demand=demand)
    deadline_s = 8 * DAY_S / 24
    policy = solve_policy(model, levels=8, deadlines_s={"batch": deadline_s})
    for load in LOADS:
        count = int(load * policy.levels[-1].load_qps * DAY_S * np.mean(DIURNAL))
        drawn = model.lengths.draw(1.0, count, seed=1)
        rising = np.append(0.0, np.cumsum(DIURNAL)) / np.sum(DIURNAL)
        classes = model.lengths.request_class[drawn.buckets]
        places = np.random.default_rng(2).random(count)
        by_day = np.interp(places, rising, np.linspace(0.0, DAY_S, len(rising)))
        arrivals_s = np.where(classes == 0, by_day, DAY_S * places)  # batch comes evenly
        kept = (classes == 0) | (arrivals_s < DAY_S - deadline_s)  # so that all batch is due in the day
        order = np.argsort(arrivals_s, kind="stable")
        order = order[kept[order]]
        lengths = drawn.input_tokens[order], drawn.output_tokens[order]
        traffic, classes = Traffic(arrivals_s[order], *lengths, drawn.buckets[order]), classes[order]
        routing.show(f"\n  peak at {load:.0%} of what the policy serves, {count:,} requests in a short day:")
        interactive = tuple(replace(one, deadline_s=None) for one in policy.classes)
        found = {}
        for what, followed in (
            ("nobody waits", replace(policy, classes=interactive)),
            ("batch waits for troughs", replace(policy, hours=(), carbon=())),
            ("and for cleaner hours", policy),
        ):
            (one,) = replay(model, followed, traffic, classes, names=[ENERGY]).outcomes
            found[what] = one
            chat, batch = (min(row) for row in one.attainment)
            routing.show(
                f"    {what:24} {one.energy_j / 3.6e6:7.3f} kWh, {one.carbon_kg:7.3f} kg CO2e, chat {chat:6.1%} and "
                f"batch {batch:6.1%} within, batch waited {one.deferred_s[1]:5.0f} s of {deadline_s:.0f}"
            )
        first, trough = found["nobody waits"], found["batch waits for troughs"]
        assert trough.energy_j < 1.005 * first.energy_j or load > 0.5
        for one in found.values():
            assert min(one.attainment[0]) >= min(first.attainment[0]) - 0.01


def test_conversations_come_home(case: Any) -> None:
    rate = case.saturation * len(case.trace) / case.trace.times_s[-1]
    longest = min(replica.max_context for replica in case.model.replicas)
    routing.show(f"\n{case.name}: conversations of four turns in the mean")
    for load in (0.1, 0.25, 0.4):
        traffic = case.model.lengths.converse(load * rate, 8000, 1, 4.0, longest)
        classes = np.zeros(len(traffic), np.int64)
        found = {}
        for name, affinity in ((LEAST, True), ("session-hash", True), (ENERGY, False), (ENERGY, True)):
            (one,) = replay(case.model, case.policy, traffic, classes, names=[name], affinity=affinity).outcomes
            found[name, affinity] = one
            what = f"{name}{'' if affinity else ', no memory of sessions'}"
            ttft = one.latency[0]
            routing.show(
                f"  {load:.0%} {what:32} {said(one)}, TTFT p50 {1e3 * ttft['ttft_p50_s']:5.0f} ms "
                f"p90 {1e3 * ttft['ttft_p90_s']:6.0f} ms, {one.cached:4.0%} of prompts cached"
            )
        home, without = found[ENERGY, True], found[ENERGY, False]
        assert home.cached > without.cached
        assert home.energy_j < min(found[LEAST, True].energy_j, found["session-hash", True].energy_j)
