"""Do plans reach their SLOs? Run with ``pytest tests/benchmarks/test_verification.py -s``.

Thirty random demands on the shipped profiles, of one rate each, drawn as users might ask: model, request mix, rate,
objectives, percentile, quality floor, GPU types. Each is planned plainly and with verification; both plans are then
simulated with fresh arrivals (other seeds). A plan reaches its SLOs where every one is met by at least the share of
requests that it asks for, as simulated. And a few demands of several classes, whose replicas are shared.

What the figures are not: the simulator runs on the same step times as the planner. They say that the plan's arithmetic
of queues, mixes and whole replicas holds, not that the step times do.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from qplan.core.demand import Demand, RequestClass
from qplan.core.errors import InfeasibleError
from qplan.core.model import Model
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.solvers.capacity import planner
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.candidates import candidates
from qplan.solvers.fleet.planning import plan_fleet
from qplan.solvers.fleet.verified import asked_fleet, capacity_fleet, verified_capacity, verified_fleet
from qplan.solvers.fleet.verify import Verification, verify

DEMANDS = int(os.environ.get("QPLAN_DEMANDS", "30"))
SEED = 5
FRESH_SEED = 1_000_003
FRESH_REQUESTS = 50_000
MODELS = ("llama-3.1-8b", "llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3.1-70b", "codellama-34b")


def random_ask(random: np.random.Generator) -> CapacityAsk:
    percentile = float(random.choice([50, 90, 95, 99]))
    slos = []
    if random.random() < 0.85:
        slos.append(Slo("ttft", float(random.choice([0.2, 0.3, 0.5, 1, 2, 5])), percentile))
    if random.random() < 0.6:
        slos.append(Slo("tpot", float(random.choice([0.02, 0.03, 0.05, 0.1])), percentile))
    if random.random() < 0.25 or not slos:
        slos.append(Slo("e2e", float(random.choice([5, 10, 20, 40])), percentile))
    lengths = f"isl={int(random.choice([128, 512, 2000]))},osl={int(random.choice([16, 128, 400]))}"
    mix = str(random.choice(["chat", "code", "summarization", lengths]))
    gpus = ("A100-SXM4-80GB", "H100-SXM5-80GB", "H200-SXM", "L40S")
    chosen = random.choice(gpus, int(random.integers(1, 4)), replace=False)
    return CapacityAsk.of(
        float(np.round(10 ** random.uniform(0.3, 2.3), 1)),
        slos,
        models=[Model.named(str(random.choice(MODELS)))],
        workload=Workload.named(mix) or Workload.fixed(mix),
        quality_floor=float(random.choice([0.9, 0.97, 0.99])),
        inventory={str(name): np.inf for name in chosen} if random.random() < 0.5 else None,
    )


def test_thirty_random_demands(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(SEED)
    lines = [
        "\n| demand | plain $/h | reaches | verified $/h | plans | reaches | s |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    plain_reached = verified_reached = held = done = infeasible = 0
    extra, took = [], []
    while done < DEMANDS:
        ask = random_ask(random)
        try:
            found = candidates(ask)
            result = planner.solved(ask, found, solver="highs", time_limit_s=20)
        except InfeasibleError:
            infeasible += 1
            continue
        done += 1
        plain = verify(capacity_fleet(ask, found, result), requests=FRESH_REQUESTS, seed=FRESH_SEED)
        start = time.perf_counter()
        answer = verified_capacity(ask)
        took.append(time.perf_counter() - start)
        made = answer.tightened
        assert made is not None, answer.answer.plan.reason
        fresh = verify(capacity_fleet(ask, found, made.result), requests=FRESH_REQUESTS, seed=FRESH_SEED + 1)
        before = planner.answered(ask, found, result, solver="highs", why=False).plan.cost_per_hour
        after = answer.answer.plan.cost_per_hour
        assert before is not None
        assert after is not None
        plain_reached += plain.reached
        verified_reached += fresh.reached
        held += made.verification.holds
        extra.append(after / before - 1)
        asked = f"{ask.rate_qps:g} req/s {ask.workload.name} {ask.models[0]} {' '.join(map(str, ask.slos))}"
        lines.append(
            f"| {asked} | {before:.2f} | {least(plain)} | {after:.2f} | {made.rounds} | {least(fresh)} "
            f"| {took[-1]:.1f} |"
        )
    lines.append(
        f"{done} demands ({infeasible} more had no plan): {plain_reached} plain plans reach their SLOs with fresh "
        f"arrivals, {verified_reached} verified ones ({held} called verified); verification costs "
        f"{np.mean(extra):.1%} more on average, {np.max(extra):.1%} at most; {np.median(took):.1f} s in the median"
    )
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    assert verified_reached >= DEMANDS - max(1, DEMANDS // 30)


def random_demand(random: np.random.Generator) -> Demand:
    """Two or three classes of one model on shared replicas, one period."""
    menu = (
        ("chat", "chat", "ttft=500ms", "tpot=50ms"),
        ("code", "code", "ttft=300ms", "tpot=40ms"),
        ("summarization", "summarization", "ttft=3s", "tpot=150ms"),
        ("documents", "isl=2000,osl=300", "ttft=10s", "tpot=200ms"),
    )
    model = Model.named(str(random.choice(["llama-3.1-8b", "llama-2-13b", "llama-2-70b"])))
    percentile = float(random.choice([90, 99]))
    chosen = random.choice(len(menu), int(random.integers(2, 4)), replace=False)
    classes = []
    for name, mix, *texts in (menu[n] for n in sorted(chosen)):
        slos = tuple(slo.at(percentile) for slo in Slo.parse_all(texts))
        rate = float(np.round(10 ** random.uniform(0, 1.7), 1))
        workload = Workload.named(mix) or Workload.fixed(mix)
        classes.append(RequestClass(name, workload, slos, (model,), 0.97, None, (rate,)))
    none = (0.0,)
    return Demand(
        "random", tuple(classes), (1.0,), (), none, none, np.inf, 0, 0.0, 0.0, (("cost", 1.0),), "trtllm-composed"
    )


def test_demands_of_several_classes(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(SEED + 1)
    lines = [
        "\n| demand | plain $ | reaches | verified $ | plans | reaches |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    reached = [0, 0]
    count = max(3, DEMANDS // 3)
    for _ in range(count):
        demand = random_demand(random)
        plain, verified = plan_fleet(demand), verified_fleet(demand)
        fresh = []
        for n, answer in enumerate((plain, verified)):
            assert answer.asked is not None, answer.plan.reason
            assert answer.result is not None
            fleet = asked_fleet(answer.asked, answer.result)
            fresh.append(verify(fleet, requests=FRESH_REQUESTS // 2, seed=FRESH_SEED + n))
            reached[n] += fresh[-1].reached
        assert verified.plan.verification is not None
        names = " + ".join(f"{one.rate_qps[0]:g} {one.name}" for one in demand.classes)
        lines.append(
            f"| {names} {demand.classes[0].models[0]} p{demand.classes[0].slos[0].percentile:g} | "
            f"{plain.plan.objective:.2f} | {least(fresh[0])} | {verified.plan.objective:.2f} | "
            f"{verified.plan.verification['rounds']} | {least(fresh[1])} |"
        )
    lines.append(
        f"{count} demands of 2 or 3 classes: {reached[0]} plain plans reach every SLO, {reached[1]} verified ones"
    )
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    assert reached[1] >= count - 1


def least(verification: Verification) -> str:
    """Return the share that is least above its target, of that target."""
    one = min(verification.attainments, key=lambda one: one.share - one.target)
    return f"{one.share:.2%} of {one.target:.0%}" + ("" if verification.reached else " **short**")
