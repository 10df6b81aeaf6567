from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.solvers.backends import open_backend
from qplan.solvers.capacity.problem import CapacityProblem
from qplan.solvers.capacity.program import build
from qplan.solvers.capacity.prune import undominated
from qplan.solvers.capacity.solve import Run


def problem(capacity: list[float], gpus: list[int], quality: list[float], *, price: float = 2.0) -> CapacityProblem:
    n = len(capacity)
    return CapacityProblem(
        classes=("chat",),
        deployments=tuple(f"d{i}" for i in range(n)),
        gpu_types=("a100", "h100"),
        rate_qps=np.array([10.0]),
        capacity_qps=np.array([capacity]),
        gpu_type=np.zeros(n, int),
        gpus=np.array(gpus),
        cost_per_hour=np.array(gpus) * price,
        quality=np.array([quality]),
        inventory=np.array([np.inf, np.inf]),
    )


def test_two_small_replicas_stand_in_for_a_big_one() -> None:
    assert undominated(problem([3.0, 5.9], [1, 2], [1.0, 1.0]), by_quality=True).tolist() == [0]
    assert undominated(problem([3.0, 6.1], [1, 2], [1.0, 1.0]), by_quality=True).tolist() == [0, 1]


def test_better_quality_stays_where_quality_counts() -> None:
    graded = problem([3.0, 2.0], [1, 1], [0.9, 1.0])
    assert undominated(graded, by_quality=True).tolist() == [0, 1]
    assert undominated(graded, by_quality=False).tolist() == [0]


def test_of_equals_the_first_stays_and_what_serves_nothing_goes() -> None:
    assert undominated(problem([3.0, 3.0, 0.0], [1, 1, 1], [1.0] * 3), by_quality=True).tolist() == [0]


def test_another_gpu_type_is_no_stand_in() -> None:
    apart = replace(problem([3.0, 2.0], [1, 1], [1.0, 1.0]), gpu_type=np.array([0, 1]))
    assert undominated(apart, by_quality=True).tolist() == [0, 1]


@pytest.mark.slow
def test_pruning_leaves_the_objective_alone(random_problem: Callable[[int], CapacityProblem]) -> None:
    run = Run.start(open_backend("highs"), 60.0)
    pruned = 0
    for seed in range(200, 260):
        one = random_problem(seed)
        kept = undominated(one, by_quality=False)
        every = np.flatnonzero((one.capacity_qps > 0).any(0))
        pruned += len(every) - len(kept)
        few, all_of_them = (run.minimise(build(one, which).minimising(one.price))[0] for which in (kept, every))
        assert few.status == all_of_them.status
        if all_of_them.objective is not None:
            assert few.objective == pytest.approx(all_of_them.objective, rel=1e-9)
    assert pruned > 20
