"""What routing by energy keeps when it is spread over several routers, and serves conversations.

    pytest -s tests/benchmarks/test_routing_scaled.py

Fleets, traces and loads are those of ``test_routing.py``; the policy saw the first fifth of a trace and the rest is
served. Simulated: differences between policies stand on composed step times and a fitted power model.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.solvers.routing.replaying import ENERGY, Outcome, replay

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
