from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from qplan.solvers.capacity.diagnose import diagnose
from qplan.solvers.capacity.problem import CapacityProblem

Make = Callable[[int], CapacityProblem]
Oracle = Callable[[CapacityProblem], tuple[float, set[tuple[int, ...]]] | None]


def test_a_class_that_nothing_serves(random_problem: Make) -> None:
    problem = random_problem(0)
    unserved = problem.without(np.ones(len(problem.deployments), bool))
    found = diagnose(unserved)
    assert found.unserved == tuple(range(len(problem.classes)))
    assert (found.demand_scale, found.extra_gpus, found.extra_of_one_type) == (None, None, {})


@pytest.mark.slow
def test_against_enumeration(random_problem: Make, oracle: Oracle) -> None:
    """The scale is the largest that an enumeration carries; the extra GPUs are enough and one fewer is not."""
    seen = 0
    for seed in range(400):
        problem = random_problem(seed)
        served = (problem.capacity_qps > 0).any(1).all()
        if not served or seen == 15 or oracle(problem) is not None:
            continue
        seen += 1
        found = diagnose(problem)
        assert found.unserved == ()
        assert found.demand_scale is not None
        assert 0 <= found.demand_scale < 1
        if found.demand_scale > 0:
            assert oracle(replace(problem, rate_qps=problem.rate_qps * found.demand_scale * (1 - 1e-5))), seed
        assert oracle(replace(problem, rate_qps=problem.rate_qps * (found.demand_scale * 1.002 + 1e-3))) is None, seed
        assert (found.feasible_without_spare is None) == (problem.spare == 0)
        if problem.spare:
            assert found.feasible_without_spare == (oracle(replace(problem, spare=0)) is not None), seed

        assert found.extra_gpus is not None
        total = int(found.extra_gpus.sum())
        assert oracle(replace(problem, inventory=problem.inventory + found.extra_gpus)) is not None, seed
        limited = [range(total) if np.isfinite(stock) else range(1) for stock in problem.inventory]
        for extra in product(*limited):
            if sum(extra) == total - 1:
                assert oracle(replace(problem, inventory=problem.inventory + extra)) is None, seed

        for g, stock in enumerate(problem.inventory):
            alone = np.arange(len(problem.inventory)) == g
            if g in found.extra_of_one_type:
                more = found.extra_of_one_type[g]
                assert more >= total
                assert oracle(replace(problem, inventory=problem.inventory + more * alone)) is not None, seed
                assert oracle(replace(problem, inventory=problem.inventory + (more - 1) * alone)) is None, seed
            elif np.isfinite(stock):
                assert oracle(replace(problem, inventory=problem.inventory + 64 * alone)) is None, seed
    assert seen == 15


@pytest.mark.parametrize(("spare", "extra"), [(0, 3), (1, 4)])
def test_known_shortfall(spare: int, extra: int) -> None:
    """Ten requests/s at two a GPU need five GPUs, and six with a spare; there are two."""
    problem = CapacityProblem(
        classes=("chat",),
        deployments=("small", "h100"),
        gpu_types=("a100", "h100"),
        rate_qps=np.array([10.0]),
        capacity_qps=np.array([[2.0, 1.0]]),
        gpu_type=np.array([0, 1]),
        gpus=np.array([1, 1]),
        cost_per_hour=np.array([1.0, 1.0]),
        quality=np.ones((1, 2)),
        inventory=np.array([2.0, 0.0]),
        spare=spare,
    )
    found = diagnose(problem)
    assert found.demand_scale == pytest.approx(0.2 if spare else 0.4, rel=1e-3)
    assert found.extra_gpus is not None
    assert found.extra_gpus.tolist() == [extra, 0]
    assert found.extra_of_one_type == {0: extra, 1: 8 if spare else 6}
