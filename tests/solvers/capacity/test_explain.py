from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from qplan.core.errors import InfeasibleError
from qplan.solvers.backends import open_backend
from qplan.solvers.capacity.explain import CLOSE, explain
from qplan.solvers.capacity.prices import shadow_prices
from qplan.solvers.capacity.problem import CapacityProblem
from qplan.solvers.capacity.solve import solve_capacity

HIGHS = open_backend("highs")


def two_types(*, a100: float = 4.0, rate: float = 10.0) -> CapacityProblem:
    """A100: 2 requests/s for 2 $/h; H100: 4 for 6; another on the H100: 4 for 6.1."""
    return CapacityProblem(
        classes=("chat",),
        deployments=("a100", "h100", "h100 too"),
        gpu_types=("a100", "h100"),
        rate_qps=np.array([rate]),
        capacity_qps=np.array([[2.0, 4.0, 4.0]]),
        gpu_type=np.array([0, 1, 1]),
        gpus=np.array([1, 1, 1]),
        cost_per_hour=np.array([2.0, 6.0, 6.1]),
        quality=np.array([[1.0, 0.9, 1.0]]),
        inventory=np.array([a100, np.inf]),
    )


def test_shadow_prices_by_hand() -> None:
    """The four A100 are used up: a request/s more costs 6 / 4, and an A100 more saves 2 * 6 / 4 less its own 2."""
    prices = shadow_prices(two_types(), HIGHS)
    np.testing.assert_allclose(prices.per_qps, [1.5])
    np.testing.assert_allclose(prices.per_gpu, [1.0, 0.0], atol=1e-9)
    assert prices.relaxation == pytest.approx(4 * 2 + 2 / 4 * 6)
    plenty = shadow_prices(two_types(a100=np.inf), HIGHS)
    np.testing.assert_allclose(plenty.per_qps, [1.0])
    np.testing.assert_allclose(plenty.per_gpu, [0.0, 0.0])


def test_shadow_prices_are_the_slopes_of_the_relaxation(random_problem: Callable[[int], CapacityProblem]) -> None:
    checked = 0
    for seed in range(60):
        problem = random_problem(seed)
        base = relaxation(problem)
        if base is None:
            continue
        checked += 1
        prices = shadow_prices(problem, HIGHS)
        assert prices.relaxation == pytest.approx(base, rel=1e-7), seed
        assert (prices.excess >= -1e-7).all()
        for k in range(len(problem.classes)):
            grown = relaxation(
                replace(problem, rate_qps=problem.rate_qps + 0.1 * (np.arange(len(problem.classes)) == k))
            )
            # The relaxation is convex in the demand: its slope here is no more than the slope of any step up.
            assert grown is None or grown >= base + 0.1 * prices.per_qps[k] - 1e-7, seed
        for g in range(len(problem.gpu_types)):
            eased = relaxation(replace(problem, inventory=problem.inventory + (np.arange(len(problem.gpu_types)) == g)))
            assert eased is not None
            assert eased >= base - prices.per_gpu[g] - 1e-7, seed
    assert checked > 30


def relaxation(problem: CapacityProblem) -> float | None:
    """The relaxation in requests/s, by an LP of its own."""
    k, d = np.nonzero(problem.capacity_qps)
    n = len(problem.deployments)
    price = problem.cost_per_hour if problem.objective == "cost" else problem.gpus
    serve = np.zeros((len(problem.classes), len(k) + n))
    serve[k, np.arange(len(k))] = 1
    busy = np.zeros((n, len(k) + n))
    busy[d, np.arange(len(k))] = 1 / problem.capacity_qps[k, d]
    busy[np.arange(n), len(k) + np.arange(n)] = -1
    stock = np.zeros((len(problem.gpu_types), len(k) + n))
    stock[problem.gpu_type, len(k) + np.arange(n)] = problem.gpus
    limited = np.isfinite(problem.inventory)
    answer = linprog(
        np.concatenate([np.zeros(len(k)), price]),
        A_ub=np.concatenate([busy, stock[limited]]),
        b_ub=np.concatenate([np.zeros(n), problem.inventory[limited]]),
        A_eq=serve,
        b_eq=problem.rate_qps,
    )
    return None if answer.fun is None else float(answer.fun)


def test_no_prices_where_even_fractions_do_not_do() -> None:
    stuck = replace(two_types(a100=1.0), inventory=np.array([1.0, 1.0]))
    with pytest.raises(InfeasibleError, match="inventory"):
        shadow_prices(stuck, HIGHS)


def test_what_binds_and_what_comes_close() -> None:
    problem = two_types(a100=3.0)
    result = solve_capacity(problem)
    assert result.counts.tolist() == [3, 1, 0]
    found = explain(problem, result)
    assert found.gpus_used.tolist() == [3, 1]
    assert found.tight_gpu_types == (0,)
    assert [(one.without_deployment, one.without_gpu_type) for one in found.runners_up] == [(1, None)]
    assert found.runners_up[0].result.counts.tolist() == [3, 0, 1]
    assert found.runners_up[0].premium == pytest.approx(0.1 / 12)


def test_the_nearest_is_named_where_none_is_close() -> None:
    problem = two_types(a100=np.inf)
    found = explain(problem, solve_capacity(problem))
    (only,) = found.runners_up
    assert only.premium > CLOSE
    assert only.without_deployment == 0
    assert only.result.counts[0] == 0


def test_full_deployments() -> None:
    problem = two_types(a100=np.inf, rate=8.0)
    found = explain(problem, solve_capacity(problem))
    assert found.full_deployments == (0,)


def test_nothing_else_to_run() -> None:
    problem = two_types().without([False, True, True])
    problem = replace(problem, inventory=np.array([9.0, 0.0]))
    assert explain(problem, solve_capacity(problem)).runners_up == ()
