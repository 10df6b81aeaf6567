from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qplan.solvers.fleet.explain import binding, explain, saved, what_to_measure
from qplan.solvers.fleet.problem import FleetProblem
from qplan.solvers.fleet.solve import solve_fleet


@pytest.fixture
def problem() -> FleetProblem:
    """A cheap pool of too few GPUs, a dear one, and two options on each."""
    figures: dict[str, Any] = {
        "classes": ("chat",),
        "options": ("a", "a2", "b", "b2"),
        "pools": ("few", "many"),
        "bucket_class": [0],
        "hours": [1.0, 2.0],
        "rate_qps": [[95.0, 40.0]],
        "capacity_qps": [[5.0, 10.0, 5.0, 9.7]],
        "pool": [0, 0, 1, 1],
        "gpus": [1, 2, 1, 2],
        "gpu_price": [[1.0, 1.0], [1.5, 1.5]],
        "committed": [False, False],
        "inventory": [10.0, np.inf],
        "node_gpus": [1, 1],
        "idle_w": [100.0, 200.0, 100.0, 200.0],
        "dynamic_j": [[10.0, 10.0, 8.0, 8.0]],
        "energy_price": [0.0, 0.0],
        "carbon": [0.0, 0.0],
        "power_cap_w": np.inf,
        "start_s": [0.0] * 4,
        "start_cost": [0.0] * 4,
        "quality": [[0.95, 0.96, 1.0, 1.0]],
        "mean_quality": [0.0],
    }
    return FleetProblem(**figures)


def test_a_gpu_of_the_pool_that_is_used_up_is_worth_the_difference(problem: FleetProblem) -> None:
    result = solve_fleet(problem)
    assert result.objective == pytest.approx(10.0 + 9 * 1.5 + 2 * 8.0)
    found = explain(problem, result)
    assert found.prices is not None
    np.testing.assert_allclose(found.prices.gpu, [0.5, 0.0], atol=1e-7)
    assert found.binding.gpus.tolist() == [[True, False], [False, False]]
    assert saved(found.prices, replace(problem, inventory=problem.inventory + 2)) == pytest.approx(2 * 0.5)
    assert saved(found.prices, replace(problem, inventory=np.zeros(2))) is None


def test_a_floor_and_a_cap_have_a_price(problem: FleetProblem) -> None:
    floored = replace(problem, mean_quality=np.array([0.985]))
    result = solve_fleet(floored)
    found = explain(floored, result)
    assert found.prices is not None
    assert found.prices.quality[0] > 0
    step = 1e-3
    lower = explain(replace(floored, mean_quality=np.array([0.985 - step])), result).prices
    assert lower is not None
    assert found.prices.bound - lower.bound == pytest.approx(found.prices.quality[0] * step, rel=1e-3)

    capped = replace(problem, power_cap_w=2750.0)
    tight = explain(capped, solve_fleet(capped)).prices
    looser = explain(replace(capped, power_cap_w=2751.0), result).prices
    assert tight is not None
    assert looser is not None
    assert tight.power.sum() > 0
    assert tight.bound - looser.bound == pytest.approx(tight.power.sum(), rel=1e-2)


def test_runners_up_do_without_what_they_name(problem: FleetProblem) -> None:
    result = solve_fleet(problem)
    found = explain(problem, result)
    assert found.runners_up
    for one in found.runners_up:
        out = [d for d, name in enumerate(problem.options) if one.without in (name, problem.pools[problem.pool[d]])]
        assert not one.result.counts[out].any()
        assert one.premium >= -1e-6
    assert [one.premium for one in found.runners_up] == sorted(one.premium for one in found.runners_up)


def test_limits_that_are_reached_bind(problem: FleetProblem) -> None:
    limited = replace(problem, at_most={"energy": 100.0, "gpus": 35.0})
    result = solve_fleet(limited)
    assert binding(limited, result).at_most == ("gpus",)


def test_what_would_change_the_plan_comes_first(problem: FleetProblem) -> None:
    def with_capacity(d: int, factor: float) -> FleetProblem:
        scaled = problem.capacity_qps * np.where(np.arange(4) == d, factor, 1.0)
        return replace(problem, capacity_qps=scaled)

    nothing = replace(problem, capacity_qps=np.zeros((1, 4)))
    found = what_to_measure(
        problem,
        [("b2 slower", with_capacity(3, 0.9)), ("b2 faster", with_capacity(3, 1.3)), ("none serves", nothing)],
    )
    assert [one.what for one in found] == ["none serves", "b2 faster", "b2 slower"]
    gone, faster, slower = found
    assert gone.regret is None
    assert faster.regret is not None
    assert faster.regret > 0
    assert 0 < faster.moved < 1
    assert slower.regret == pytest.approx(0.0, abs=1e-4)
    assert slower.moved == pytest.approx(0.0, abs=1e-4)
