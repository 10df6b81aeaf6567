"""A day of Azure's requests at 500 requests/s: by the hour against one fleet all day. By name, with ``pytest -s``.

The public traces are about an hour each, of one hour of one day. They give the lengths and, where plans are simulated,
the arrivals; how many there are by the hour is qplan's diurnal shape (``demand: diurnal``), scaled so that both classes
together have 500 requests/s in the busiest hour, in the proportion of the traces. At s times its rate a trace stands
for s times the users: s copies of it, each begun at a random moment (:mod:`qplan.solvers.fleet.arrivals`).

The static fleet is the cheapest that carries every hour: since both classes follow the same shape, the solver's own
answer for the busiest hour, up all day and routed as in that hour. Both are planned plainly and with verification;
all are then simulated with arrivals of other seeds.

What the figures are not: the simulator runs on the same step times as the planner, and prices are the catalogue's.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qplan.core.demand import Demand
from qplan.core.fleetplan import FleetPlan
from qplan.profiles.demands import demand_of
from qplan.profiles.yamlfile import read_yaml
from qplan.solvers.fleet.planning import FleetAnswer, plan_fleet
from qplan.solvers.fleet.replay import PlannedFleet
from qplan.solvers.fleet.verified import asked_fleet, verified_fleet
from qplan.solvers.fleet.verify import Verification, verify

TRACES = Path(__file__).parents[2] / "../shared/data/azure-llm-2023"
PEAK_QPS = 500.0
FRESH_SEED = 1_000_003
DAY = """\
classes:
  - name: chat
    rate: {chat}
    demand: diurnal
    trace: AzureLLMInferenceTrace_conv.csv
    task: chat
    slo: [p90:ttft=1s, p90:tpot=60ms]
    models: [llama-3.1-8b]
    quality: 97%
  - name: code
    rate: {code}
    demand: diurnal
    trace: AzureLLMInferenceTrace_code.csv
    task: code
    slo: [p90:ttft=2s]
    models: [llama-3.1-8b]
    quality: 95%
"""

pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="Azure's traces are not beside this checkout")


def azure_day() -> Demand:
    """Both traces at :data:`PEAK_QPS` together, in proportion to their own rates of 5.53 and 2.57 requests/s."""
    chat, code = 5.53, 2.57
    each = {"chat": PEAK_QPS * chat / (chat + code), "code": PEAK_QPS * code / (chat + code)}
    return demand_of(read_yaml(DAY.format(**each), "azure-day.yaml"), TRACES, "azure-day")


def at_peak(demand: Demand) -> Demand:
    """The busiest hour, all day."""
    classes = tuple(replace(one, rate_qps=(max(one.rate_qps),)) for one in demand.classes)
    return replace(demand, hours=(24.0,), classes=classes, energy_price=(0.0,), carbon=(0.0,))


def fleet_of(answer: FleetAnswer) -> PlannedFleet:
    assert answer.asked is not None, answer.plan.reason
    assert answer.result is not None
    return asked_fleet(answer.asked, answer.result)


def all_day(static: PlannedFleet, day: PlannedFleet) -> PlannedFleet:
    """The static fleet, and its routing, under the demand of the day."""
    assert static.options == day.options
    hours = day.rate_qps.shape[1]
    return replace(
        static,
        rate_qps=day.rate_qps,
        counts=np.repeat(static.counts, hours, axis=1),
        share=np.repeat(static.share, hours, axis=2),
    )


def cost_by_hour(plan: FleetPlan) -> list[float]:
    return [sum(group.cost for group in period.groups) for period in plan.periods]


def attained(seen: Verification) -> str:
    """Return the share of each objective in its worst hour, and how many of all are reached."""
    worst: dict[str, float] = {}
    for one in seen.attainments:
        key = f"{one.class_name} {one.slo.metric}"
        worst[key] = min(worst.get(key, 1.0), one.share)
    reached = sum(one.reached for one in seen.attainments)
    return ", ".join(f"{key} {share:.1%}" for key, share in worst.items()) + (
        f" | {reached} of {len(seen.attainments)}"
    )


def test_a_day_of_azures_requests(capsys: pytest.CaptureFixture[str]) -> None:
    demand = azure_day()
    assert demand.peak_qps == pytest.approx(PEAK_QPS)
    lines = [
        "\n| plan | $ a day | gap | s to plan | attained in the worst hour (asked for 90 %) | objectives x hours |",
        "| --- | --: | --: | --: | --- | --: |",
    ]
    plans: dict[str, FleetPlan] = {}
    took: dict[str, float] = {}
    seen: dict[str, Verification] = {}
    for way, make in (("plain", plan_fleet), ("verified", verified_fleet)):
        start = time.perf_counter()
        day = make(demand, time_limit_s=20.0)
        middle = time.perf_counter()
        static = make(at_peak(demand), time_limit_s=20.0)
        took |= {f"by the hour, {way}": middle - start, f"static, {way}": time.perf_counter() - middle}
        fleets = {f"by the hour, {way}": fleet_of(day)}
        fleets[f"static, {way}"] = all_day(fleet_of(static), fleets[f"by the hour, {way}"])
        plans |= {f"by the hour, {way}": day.plan, f"static, {way}": static.plan}
        seen |= {name: verify(fleet, seed=FRESH_SEED) for name, fleet in fleets.items()}
    for name, plan in plans.items():
        assert plan.gap is not None
        assert plan.totals is not None
        lines.append(
            f"| {name} | {plan.totals.cost:,.2f} | {plan.gap:.3%} | {took[name]:.1f} | {attained(seen[name])} |"
        )
    costs = {name: plan.totals.cost for name, plan in plans.items() if plan.totals is not None}
    for way in ("plain", "verified"):
        saved = 1 - costs[f"by the hour, {way}"] / costs[f"static, {way}"]
        lines.append(f"{way}: by the hour saves {saved:.1%} of the best static fleet")
    hours = cost_by_hour(plans["by the hour, verified"])
    lines.append("verified, $ by the hour: " + " ".join(f"{cost:.0f}" for cost in hours))
    lines.append(f"static, $ an hour: {costs['static, verified'] / 24:.0f}")
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    assert took["by the hour, plain"] < 30
    assert took["by the hour, verified"] < 60
    for way in ("plain", "verified"):
        assert costs[f"by the hour, {way}"] <= costs[f"static, {way}"]
    holding = seen["by the hour, verified"].attainments
    assert sum(one.reached for one in holding) >= 0.97 * len(holding)
    assert min(one.share - one.target for one in holding) > -0.02
