"""Do the loads of classes that share a replica add? Run with ``pytest tests/benchmarks/test_mixing.py -s``.

Six shipped deployments and five classes of requests whose objectives differ. Each class alone at the limit that the
serving model gives it, pairs and triples of them at random splits of a replica's time, each mix simulated at the limit
of (1) *plain addition*: each class by its own limit, as the published formulation has it; and (2) the *capacities of
the set* of classes that share the replica (``models/mixing.py``). A mix holds where every class reaches its objectives
in simulation.

What the figures are not: the simulator runs on the same step times as the limits. They judge the arithmetic of queues
and mixes, not the step times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.mixing import Mixing
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.sharing import SharingModel
from qplan.models.simulator.grids import grid_of
from qplan.models.simulator.replica import Replica
from qplan.models.steptimes import Floats
from qplan.profiles.packs import read_pack
from qplan.solvers.fleet.replay import PlannedFleet
from qplan.solvers.fleet.verify import verify

DEPLOYMENTS = (
    "llama-3.1-8b BF16 H100-SXM5-80GB x1",
    "llama-3.1-8b W8A8-FP L40S x1",
    "llama-2-13b W8A8-INT A100-SXM4-80GB x1",
    "llama-2-70b W4A16 H100-SXM5-80GB x2",
    "llama-3.1-70b BF16 H200-SXM x4",
    "llama-2-7b W4A16 A100-SXM4-80GB x2",
)
CLASSES = {
    "chat": ("chat", ("p90:ttft=500ms", "p90:tpot=50ms")),
    "code": ("code", ("p99:ttft=300ms", "p99:tpot=40ms")),
    "summarization": ("summarization", ("p90:ttft=3s", "p90:tpot=150ms")),
    "documents": ("isl=3500,osl=300", ("p90:ttft=10s", "p90:tpot=200ms")),
    "batch": ("isl=500,osl=500", ("p90:e2e=120s",)),
}
REQUESTS = 12_000
SEED = 20_261_121


def test_classes_that_share_a_replica(capsys: pytest.CaptureFixture[str]) -> None:
    models = sorted({name.split()[0] for name in DEPLOYMENTS})
    found = profiled(read_pack("trtllm-composed", models=models, columns=COLUMNS).table, "trtllm-composed")
    assert found is not None
    index = np.array([list(map(str, found.deployments)).index(name) for name in DEPLOYMENTS])
    deployments, steps = [found.deployments[i] for i in index], found.steps.take(index)
    replicas = [Replica.of(one, grid_of(steps, d)) for d, one in enumerate(deployments)]
    workloads = [Workload.named(name) or Workload.fixed(name) for name, _ in CLASSES.values()]
    slos = [Slo.parse_all(texts) for _, texts in CLASSES.values()]
    serving = SharingModel.of(deployments, steps)
    own = np.stack([serving.saturation_qps(one, limits) for one, limits in zip(workloads, slos, strict=True)])
    every = len(CLASSES)
    start = time.process_time()
    mixing = Mixing.of(serving, workloads, slos, workloads, np.arange(every), np.ones(every), own)
    together = {served: mixing.together(served) for size in (1, 2, 3) for served in combinations(range(every), size)}
    took_s = time.process_time() - start

    random = np.random.default_rng(SEED)
    lines = [
        "\n| classes on a replica | mixes | plain addition: hold | worst | by set: hold | worst | capacity by set |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    held: dict[int, tuple[int, int, int]] = {}
    for size in (1, 2, 3):
        slack: list[tuple[float, float]] = []
        kept = []
        for served in combinations(range(every), size):
            for d, replica in enumerate(replicas):
                limits = together[served][:, d]
                if not limits.any():
                    continue
                used = np.zeros(every)
                used[list(served)] = random.dirichlet(np.ones(size))
                both = [least_slack(fleet_of(workloads, slos, replica, used * rates)) for rates in (own[:, d], limits)]
                slack.append((both[0], both[1]))
                kept.append(float((used[list(served)] * limits[list(served)] / own[list(served), d]).sum()))
        plain, by_set = np.array(slack).T
        held[size] = len(slack), int((plain >= 0).sum()), int((by_set >= 0).sum())
        lines.append(
            f"| {size} | {len(slack)} | {held[size][1]} | {plain.min():+.0%} | {held[size][2]} | {by_set.min():+.0%} | "
            f"{np.median(kept):.0%} of plain in the median |"
        )
    lines.append(
        f"worst: share of requests within the objective less the target; limits of all sets: {took_s:.2f} CPU s"
    )
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    alone, pairs, triples = held[1], held[2], held[3]
    assert pairs[0] - pairs[2] <= (pairs[0] - pairs[1]) / 2  # the correction takes away at least half of the misses
    assert triples[2] / triples[0] >= 0.95
    assert triples[1] < triples[2]
    assert alone[1] == alone[2]  # and leaves a class alone as it is


def fleet_of(
    workloads: Sequence[Workload], slos: Sequence[tuple[Slo, ...]], replica: Replica, rate: Floats
) -> PlannedFleet:
    """One replica that gets each class at its rate."""
    served: list[int] = np.flatnonzero(rate).tolist()
    kinds = [(n, bucket) for n, k in enumerate(served) for bucket in workloads[k].buckets]
    return PlannedFleet(
        classes=tuple(workloads[k].name for k in served),
        slos=tuple(slos[k] for k in served),
        bucket_class=np.arange(len(served)),
        kind_bucket=np.array([n for n, _ in kinds]),
        input_tokens=np.array([max(1, round(bucket.input_tokens)) for _, bucket in kinds]),
        output_tokens=np.array([max(1, round(bucket.output_tokens)) for _, bucket in kinds]),
        rate_qps=np.array([[rate[served[n]] * bucket.weight] for n, bucket in kinds]),
        options=(replica.name,),
        replicas=(replica,),
        counts=np.array([[1]]),
        share=np.ones((len(served), 1, 1)),
        available=np.ones(1),
        recorded=(None,) * len(served),
    )


def least_slack(fleet: PlannedFleet) -> float:
    """Return the least of share less target over classes and objectives."""
    return min(one.share - one.target for one in verify(fleet, requests=REQUESTS, seed=1).attainments)
