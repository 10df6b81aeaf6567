from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.solvers.backends import open_backend
from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult
from qplan.solvers.capacity.program import build
from qplan.solvers.capacity.prune import undominated
from qplan.solvers.capacity.solve import Run, solve_capacity

Make = Callable[[int], CapacityProblem]
Oracle = Callable[[CapacityProblem], tuple[float, set[tuple[int, ...]]] | None]

INSTANCES = range(200)


def one_class(
    capacity: list[float], cost: list[float], *, rate: float = 10.0, gpus: list[int] | None = None, **other: object
) -> CapacityProblem:
    n = len(capacity)
    given: dict[str, object] = {
        "classes": ["chat"],
        "deployments": [f"d{i}" for i in range(n)],
        "gpu_types": ["a100"],
        "rate_qps": [rate],
        "capacity_qps": [capacity],
        "gpu_type": [0] * n,
        "gpus": gpus or [1] * n,
        "cost_per_hour": cost,
        "quality": [[1.0] * n],
        "inventory": [np.inf],
    }
    return CapacityProblem(**(given | other))  # type: ignore[arg-type]


def check_fleet(problem: CapacityProblem, result: CapacityResult) -> None:
    """What holds of every fleet: the demand is served, by eligible deployments, within capacity and inventory."""
    np.testing.assert_allclose(result.assignment.sum(1), 1.0, rtol=1e-9)
    assert (result.assignment >= 0).all()
    assert (result.assignment[problem.capacity_qps == 0] == 0).all()
    served = result.assignment * problem.rate_qps[:, None]
    busy = np.divide(served, problem.capacity_qps, out=np.zeros_like(served), where=served > 0).sum(0)
    assert (busy <= result.counts + 1e-6).all()
    np.testing.assert_allclose(busy, result.utilisation * result.counts, atol=1e-9)
    for g, stock in enumerate(problem.inventory):
        assert result.counts[problem.gpu_type == g] @ problem.gpus[problem.gpu_type == g] <= stock
    price = problem.cost_per_hour if problem.objective == "cost" else problem.gpus
    np.testing.assert_allclose(result.objective or 0.0, price @ result.counts, rtol=1e-8)


@pytest.mark.slow
def test_the_objective_is_the_enumerated_optimum(
    random_problem: Make, oracle: Oracle, carries: Callable[..., bool]
) -> None:
    kinds: Counter[tuple[str, str, int]] = Counter()
    for seed in INSTANCES:
        problem = random_problem(seed)
        best, result = oracle(problem), solve_capacity(problem)
        kinds[result.status, problem.objective, problem.spare] += 1
        if best is None:
            assert result.status == "infeasible", seed
            continue
        assert result.status == "optimal", seed
        assert result.objective == pytest.approx(best[0], rel=1e-9), seed
        assert tuple(result.counts.tolist()) in best[1], seed
        check_fleet(problem, result)
        assert carries(problem, result.counts, problem.spare), seed
    assert all(kinds["optimal", objective, spare] >= 20 for objective in ("cost", "gpus") for spare in (0, 1))
    assert sum(kinds["infeasible", objective, spare] for objective in ("cost", "gpus") for spare in (0, 1)) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pulp:cbc", "pulp:highs"])
def test_the_backends_agree_on_the_objective(name: str, random_problem: Make) -> None:
    runs = [Run.start(backend, 600.0) for backend in ("highs", name)]
    for seed in INSTANCES:
        problem = random_problem(seed)
        program = build(problem, undominated(problem, by_quality=False)).minimising(problem.price)
        default, other = (run.minimise(program)[0] for run in runs)
        assert other.status == default.status, seed
        if default.objective is not None:
            assert other.objective == pytest.approx(default.objective, rel=1e-6), seed


@pytest.mark.parametrize("name", ["pulp:cbc", "pulp:highs"])
def test_the_backends_agree_on_all_that_is_settled(name: str, random_problem: Make) -> None:
    backend = open_backend(name)
    for seed in range(20):
        problem = random_problem(seed)
        default, other = solve_capacity(problem), solve_capacity(problem, backend=backend)
        assert (other.backend, other.status) == (name, default.status), seed
        if default.objective is not None:
            assert other.objective == pytest.approx(default.objective, rel=1e-6), seed
            check_fleet(problem, other)
            gpus = [result.counts @ problem.gpus for result in (default, other)]
            cost = [result.counts @ problem.cost_per_hour for result in (default, other)]
            quality = [(result.assignment * problem.quality).sum() for result in (default, other)]
            assert gpus[0] == gpus[1], seed
            assert cost[0] == pytest.approx(cost[1]), seed
            assert quality[0] == pytest.approx(quality[1], rel=5e-3), seed


def test_whole_replicas() -> None:
    """Five of the small for 5.0, or three of the big for 5.1, or two and a small for 4.4."""
    result = solve_capacity(one_class([2.0, 4.0], [1.0, 1.7]))
    assert result.counts.tolist() == [1, 2]
    assert result.objective == pytest.approx(4.4)
    assert result.bound == pytest.approx(4.4)
    assert result.gap == pytest.approx(0.0, abs=1e-6)


def test_a_spare_replica_covers_the_largest_in_use() -> None:
    """One big replica carries all; with a spare, two big cost 6 and three small, of which two carry all, cost 4.5."""
    problem = one_class([10.0, 5.0], [3.0, 1.5], gpus=[2, 1])
    assert solve_capacity(problem).objective == 3.0
    spared = solve_capacity(replace(problem, spare=1))
    assert spared.counts.tolist() == [0, 3]
    assert spared.objective == 4.5


def test_equal_cost_prefers_quality_then_gpus_then_headroom() -> None:
    problem = one_class([10.0, 10.0, 12.0, 15.0], [2.0, 2.0, 2.0, 2.0], gpus=[1, 2, 2, 2])
    graded = replace(problem, quality=np.array([[0.9, 1.0, 1.0, 0.9]]))
    assert solve_capacity(graded).counts.tolist() == [0, 0, 1, 0]
    alike = replace(problem, quality=np.ones((1, 4)))
    assert solve_capacity(alike).counts.tolist() == [1, 0, 0, 0]
    same_gpus = replace(alike, gpus=np.full(4, 2))
    assert solve_capacity(same_gpus).counts.tolist() == [0, 0, 0, 1]


def test_ties_under_the_gpu_objective_go_to_the_cheaper() -> None:
    problem = one_class([10.0, 10.0], [3.0, 2.0], gpu_types=["h100", "a100"], gpu_type=[0, 1], inventory=[8, 8])
    assert solve_capacity(replace(problem, objective="gpus")).counts.tolist() == [0, 1]


def test_the_demand_is_spread_evenly_at_equal_quality() -> None:
    """The cheapest fleet is one of each; both then run at 10 / 12."""
    result = solve_capacity(one_class([8.0, 4.0], [3.0, 1.6]))
    assert result.counts.tolist() == [1, 1]
    np.testing.assert_allclose(result.utilisation, 10 / 12, rtol=1e-6)


def test_an_unserved_class_is_infeasible() -> None:
    result = solve_capacity(one_class([0.0], [1.0]))
    assert (result.status, result.objective, result.bound, result.gap) == ("infeasible", None, None, None)
    assert result.counts.tolist() == [0]


def test_the_same_problem_gives_the_same_fleet(random_problem: Make) -> None:
    for seed in range(10):
        first, second = (solve_capacity(random_problem(seed)) for _ in range(2))
        np.testing.assert_array_equal(first.counts, second.counts)
        np.testing.assert_array_equal(first.assignment, second.assignment)


def hard(classes: int, deployments: int, *, spare: int = 0) -> CapacityProblem:
    """Capacity at nearly one price whatever the size: fleets abound, and the last half per cent takes long."""
    rng = np.random.default_rng(3)
    gpus = 2 ** rng.integers(0, 4, deployments)
    size = gpus * rng.uniform(0.6, 2.0, deployments)
    capacity = size * rng.uniform(0.8, 1.2, (classes, deployments))
    capacity *= rng.random((classes, deployments)) < 0.3
    return CapacityProblem(
        classes=tuple(f"class{k}" for k in range(classes)),
        deployments=tuple(f"deployment{d}" for d in range(deployments)),
        gpu_types=("a100", "h100", "l40s"),
        rate_qps=rng.uniform(0.4, 2.0, classes),
        capacity_qps=capacity,
        gpu_type=rng.integers(0, 3, deployments),
        gpus=gpus,
        cost_per_hour=(size * rng.uniform(0.95, 1.05, deployments)).round(3),
        quality=np.ones((classes, deployments)),
        inventory=np.full(3, np.inf),
        spare=spare,
    )


@pytest.mark.parametrize("name", ["highs", "pulp:cbc", "pulp:highs"])
def test_a_limited_run_claims_no_more_than_it_proved(name: str) -> None:
    """Mostly the limit ends these runs with a fleet in hand; how far a solver gets depends on the machine."""
    problem = hard(30, 60)
    result = solve_capacity(problem, backend=name, time_limit_s=1.5)
    assert_no_more_than_proven(problem, result)


def assert_no_more_than_proven(problem: CapacityProblem, result: CapacityResult) -> None:
    if result.status == "no-solution":
        assert result.objective is None
        assert not result.counts.any()
        return
    assert result.objective is not None
    check_fleet(problem, result)
    if result.bound is None:
        assert result.status == "feasible"
        assert result.gap is None
        return
    assert result.bound <= result.objective
    assert result.gap is not None
    assert result.gap == pytest.approx((result.objective - result.bound) / result.objective)
    assert (result.status == "optimal") == (result.gap <= 1e-6)


def test_a_spare_that_the_time_limit_left_unproven_still_survives_every_loss(carries: Callable[..., bool]) -> None:
    problem = hard(10, 30, spare=1)
    result = solve_capacity(problem, time_limit_s=2.0)
    assert_no_more_than_proven(problem, result)
    assert result.status == "no-solution" or carries(problem, result.counts, 1)


def test_no_time_at_all() -> None:
    result = solve_capacity(one_class([2.0], [1.0]), time_limit_s=0.0)
    assert (result.status, result.objective, result.bound) == ("no-solution", None, None)


@st.composite
def problems(draw: st.DrawFn) -> CapacityProblem:
    classes, deployments = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    figures = st.integers(1, 80).map(lambda n: n / 8)
    column = st.lists(figures | st.just(0.0), min_size=deployments, max_size=deployments)
    gpus = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=deployments, max_size=deployments))
    return CapacityProblem(
        classes=tuple(f"class{k}" for k in range(classes)),
        deployments=tuple(f"deployment{d}" for d in range(deployments)),
        gpu_types=("a100", "h100"),
        rate_qps=np.array(draw(st.lists(figures, min_size=classes, max_size=classes))),
        capacity_qps=np.array(draw(st.lists(column, min_size=classes, max_size=classes))),
        gpu_type=np.array(draw(st.lists(st.integers(0, 1), min_size=deployments, max_size=deployments))),
        gpus=np.array(gpus),
        cost_per_hour=np.array(draw(st.lists(figures, min_size=deployments, max_size=deployments))),
        quality=np.array(draw(st.lists(column, min_size=classes, max_size=classes))),
        inventory=np.array(draw(st.lists(st.integers(0, 40).map(float) | st.just(np.inf), min_size=2, max_size=2))),
        objective=draw(st.sampled_from(["cost", "gpus"])),
        spare=draw(st.integers(0, 1)),
    )


def at_most(left: CapacityResult, right: CapacityResult) -> bool:
    """Whether the left objective is no higher; an infeasible one is highest."""
    low, high = (np.inf if one.objective is None else one.objective for one in (left, right))
    return low <= high * (1 + 1e-6) + 1e-6


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(), st.floats(1.05, 4.0), st.integers(1, 16))
def test_demand_inventory_and_spare_move_the_objective_the_right_way(
    problem: CapacityProblem, growth: float, more: int
) -> None:
    result = solve_capacity(problem)
    assert result.status in ("optimal", "infeasible")
    if result.status == "optimal":
        check_fleet(problem, result)
    assert at_most(result, solve_capacity(replace(problem, rate_qps=problem.rate_qps * growth)))
    assert at_most(solve_capacity(replace(problem, inventory=problem.inventory + more)), result)
    assert at_most(solve_capacity(replace(problem, spare=0)), solve_capacity(replace(problem, spare=1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_qps": [0.0]}, r"rate_qps of 'chat': expected a finite number above 0, found 0"),
        ({"rate_qps": [float("nan")]}, r"rate_qps of 'chat': expected a finite number above 0, found nan"),
        ({"capacity_qps": [[1.0, -2.0]]}, r"capacity_qps of 'chat', 'd1': expected a finite number at least 0"),
        ({"capacity_qps": [[1.0]]}, r"capacity_qps: expected shape \(1, 2\), found \(1, 1\)"),
        ({"gpus": [1, 1.5]}, r"gpus of 'd1': expected a whole number at least 1, found 1.5"),
        ({"gpu_type": [0, 1]}, r"gpu_type of 'd1': expected a whole number at least 0 and below 1, found 1"),
        ({"inventory": [float("nan")]}, r"inventory of 'a100': expected a number at least 0, found nan"),
        ({"cost_per_hour": ["dear", "cheap"]}, r"cost_per_hour: expected numbers"),
        ({"objective": "costs"}, r"objective 'costs': expected cost or gpus; did you mean 'cost'\?"),
        ({"spare": 2}, r"spare 2: expected 0 or 1"),
        ({"classes": []}, r"needs classes and deployments; it has 0 and 2"),
    ],
)
def test_bad_input_names_the_entry(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        one_class([1.0, 2.0], [1.0, 1.0], **change)  # type: ignore[arg-type]
