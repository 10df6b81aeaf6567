"""Capacity planning at scale: gap and cost on the synthetic instances of ``../shared/bench/capacity_instances.py``.

Run by name with ``pytest -s`` for one instance of each size, and the same through the planner's own fleet program. The
whole table, with HiGHS on the program as it stands and CBC through PuLP at 60 s beside it (about half an hour on two
cores; nothing was tuned on these seeds)::

    python tests/benchmarks/test_capacity_scale.py [SEED ...]
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.solvers.backends import MatrixProgram, open_backend
from qplan.solvers.backends.contract import feasible_point
from qplan.solvers.fleet.problem import FleetProblem
from qplan.solvers.fleet.solve import solve_fleet
from qplan.solvers.scale.solve import solve_at_scale

INSTANCES = Path(__file__).parents[2] / "../shared/bench/capacity_instances.py"


def instance(buckets: int, configurations: int, seed: int) -> MatrixProgram:
    """The matrix program that the instances' docstring states."""
    return _matrix(_made(buckets, configurations, seed))


def fleet(buckets: int, configurations: int, seed: int) -> FleetProblem:
    """The same question as the planner states it: a class for each SLO and model, a pool for each GPU."""
    made = _made(buckets, configurations, seed)
    shape, at = (made["B"], made["C"]), (made["bi"], made["ci"])
    capacity, joules = np.zeros(shape), np.zeros(shape)
    capacity[at], joules[at] = 1 / made["load"], made["energy"]
    classes, none = made["K"] * made["M"], np.zeros(made["C"])
    price = np.zeros(made["G"])
    price[made["gi"]] = made["cost"] / made["tp"]
    return FleetProblem(
        classes=tuple(f"class {k}" for k in range(classes)),
        options=tuple(f"option {c}" for c in range(made["C"])),
        pools=tuple(f"pool {g}" for g in range(made["G"])),
        bucket_class=made["bk"] * made["M"] + made["bm"],
        hours=np.ones(1),
        rate_qps=made["rate"][:, None],
        capacity_qps=capacity,
        pool=made["gi"],
        gpus=made["tp"],
        gpu_price=price[:, None],
        committed=np.zeros(made["G"], bool),
        inventory=made["inv"],
        node_gpus=np.ones(made["G"], int),
        idle_w=none,
        dynamic_j=joules,
        energy_price=np.array([1000 * made["eprice"]]),
        carbon=np.zeros(1),
        power_cap_w=np.inf,
        start_s=none,
        start_cost=none,
        quality=np.tile(made["quality"], (made["B"], 1)),
        mean_quality=np.repeat(made["qfloor"], made["M"]),
    )


def _made(buckets: int, configurations: int, seed: int) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("capacity_instances", INSTANCES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.make(buckets, configurations, seed))


def _matrix(made: dict[str, Any]) -> MatrixProgram:
    b, c, g, groups = made["B"], made["C"], made["G"], made["K"] * made["M"]
    bucket, config = made["bi"], made["ci"]
    pairs, rate, empty = len(bucket), made["rate"][bucket], np.empty(0)
    share, count = np.arange(pairs), pairs + np.arange(c)
    above = made["quality"][config] - made["qfloor"][made["bk"][bucket]]
    return (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns([""] * pairs)
        .with_columns([""] * c, integer=True)
        .with_cost(np.arange(pairs + c), np.concatenate([made["eprice"] * made["energy"] * rate, made["cost"]]))
        .with_rows(bucket, share, np.ones(pairs), np.ones(b), np.ones(b))
        .with_rows(
            np.concatenate([config, np.arange(c)]),
            np.concatenate([share, count]),
            np.concatenate([made["load"] * rate, -np.ones(c)]),
            np.full(c, -np.inf),
            np.zeros(c),
        )
        .with_rows(made["gi"], count, made["tp"].astype(float), np.full(g, -np.inf), made["inv"])
        .with_rows(
            made["bk"][bucket] * made["M"] + made["bm"][bucket],
            share,
            above * rate,
            np.zeros(groups),
            np.full(groups, np.inf),
        )
    )


@pytest.mark.parametrize(
    ("buckets", "configurations", "limit_s", "gap"),
    [(10, 100, 20.0, 0.0), (100, 480, 20.0, 0.005), (1000, 2000, 60.0, 0.03)],
)
def test_gap(buckets: int, configurations: int, limit_s: float, gap: float) -> None:
    if not INSTANCES.is_file():
        pytest.skip("../shared/bench is not here")
    program = instance(buckets, configurations, 0)
    answer = solve_at_scale(program, time_limit_s=limit_s, mip_gap=gap)
    print(  # noqa: T201
        f"\n{buckets} x {configurations}: {answer.objective} >= {answer.bound}, "
        f"gap {answer.gap} in {answer.seconds:.2f} s"
    )
    assert answer.values is not None
    assert feasible_point(program, answer.values) is not None
    assert answer.gap is not None
    assert answer.gap <= gap + 1e-6


@pytest.mark.parametrize(("buckets", "configurations"), [(10, 100), (100, 480)])
def test_the_planner_finds_the_same_optimum(buckets: int, configurations: int) -> None:
    if not INSTANCES.is_file():
        pytest.skip("../shared/bench is not here")
    alone = solve_at_scale(instance(buckets, configurations, 1), time_limit_s=30, mip_gap=1e-4)
    planned = solve_fleet(fleet(buckets, configurations, 1), time_limit_s=30, mip_gap=1e-4)
    print(  # noqa: T201
        f"\n{buckets} x {configurations}: ${planned.objective}, gap {planned.gap}, {planned.seconds:.2f} s; "
        f"the program alone ${alone.objective}"
    )
    assert planned.status == "optimal"
    assert planned.objective == pytest.approx(alone.objective, rel=2e-4)


def table(seeds: list[int]) -> None:
    """Print the whole table."""
    sizes = [(10, 100, 20.0, 0.0), (100, 480, 20.0, 0.0), (1000, 2000, 60.0, 0.005), (1000, 5000, 120.0, 0.005)]
    print("size        seed   cost     bound    gap      s     | HiGHS 60 s  CBC 60 s")  # noqa: T201
    for buckets, configurations, limit_s, gap in sizes:
        for seed in seeds if buckets <= 100 else seeds[:2]:
            program = instance(buckets, configurations, seed)
            ours = solve_at_scale(program, time_limit_s=limit_s, mip_gap=gap)
            line = f"{buckets:4d} x {configurations:4d} {seed:4d} {ours.objective or np.nan:9.3f}"
            line += f" {ours.bound or np.nan:9.3f} {100 * (np.nan if ours.gap is None else ours.gap):6.3f} %"
            line += f" {ours.seconds:6.2f} |"
            if buckets == 100:
                for name in ("highs", "pulp:cbc"):
                    other = open_backend(name).solve(program, time_limit_s=60, mip_gap=1e-4)
                    line += f" {other.objective or np.nan:9.3f}"
            print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    table([int(seed) for seed in sys.argv[1:]] or list(range(10)))
