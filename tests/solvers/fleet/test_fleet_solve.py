from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.solvers import scale as at_scale
from qplan.solvers.backends import open_backend
from qplan.solvers.fleet import solve
from qplan.solvers.fleet.problem import FleetProblem, FleetResult
from qplan.solvers.fleet.search import weighing
from qplan.solvers.fleet.solve import solve_fleet
from qplan.solvers.fleet.spare import reinforced, with_runs


def one_class(capacity: list[float], price: list[float], **other: Any) -> FleetProblem:
    """One bucket of 10 requests/s in one period; every option in a pool of its own."""
    n = len(capacity)
    periods = len(other["hours"]) if "hours" in other else 1
    given: dict[str, object] = {
        "classes": ["chat"],
        "options": [f"d{i}" for i in range(n)],
        "pools": [f"pool{i}" for i in range(n)],
        "bucket_class": [0],
        "hours": [1.0],
        "rate_qps": np.full((1, periods), 10.0),
        "capacity_qps": [capacity],
        "pool": np.arange(n),
        "gpus": [1] * n,
        "gpu_price": np.outer(price, np.ones(periods)),
        "committed": [False] * n,
        "inventory": [np.inf] * n,
        "node_gpus": [1] * n,
        "idle_w": [0.0] * n,
        "dynamic_j": np.zeros((1, n)),
        "energy_price": np.zeros(periods),
        "carbon": np.zeros(periods),
        "power_cap_w": np.inf,
        "start_s": [0.0] * n,
        "start_cost": [0.0] * n,
        "quality": np.ones((1, n)),
        "mean_quality": [0.0],
    }
    return FleetProblem(**(given | other))  # type: ignore[arg-type]


def compare(reference: Any, seeds: range) -> Counter[str]:
    """Solve instances here and by the reference; both say the same."""
    kinds: Counter[str] = Counter()
    for seed in seeds:
        problem = reference.make_fleet(seed)
        best, result = reference.reference(problem), solve_fleet(problem, mip_gap=0.0)
        kinds[result.status] += 1
        if best is None:
            assert result.status == "infeasible", seed
            continue
        assert result.status == "optimal", seed
        assert result.objective == pytest.approx(best[0], rel=1e-5, abs=1e-5), seed
        for measure, least in zip(problem.then, best[1], strict=True):
            sign = -1 if measure == "quality" else 1
            assert sign * result.measures[measure] == pytest.approx(least, rel=1e-4, abs=1e-4), (seed, measure)
        reference.check_fleet(problem, result)
    return kinds


def test_random_fleets_are_the_reference_optimum(reference: Any) -> None:
    kinds = compare(reference, range(12))
    assert kinds["optimal"] >= 8
    assert kinds["infeasible"] >= 2


def test_the_narrowed_search_finds_the_reference_optimum(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of large problems, from one option on, on small ones."""
    monkeypatch.setattr(solve, "_SMALL", -1)
    monkeypatch.setattr(at_scale, "_LARGE", -1)
    monkeypatch.setattr(solve, "_FEW", 1)
    assert compare(reference, range(100, 104))["optimal"] >= 2
    assert compare(reference, range(1050, 1053))["optimal"] >= 2


@pytest.mark.slow
def test_more_random_fleets_are_the_reference_optimum(reference: Any) -> None:
    kinds = compare(reference, range(12, 45))
    assert kinds["optimal"] >= 15


def test_a_start_that_costs_more_than_idling_keeps_the_replica_up() -> None:
    """Busy, idle, busy, idle: an hour of idling costs 2; stopping and starting again 0, 1 or 3."""
    problem = one_class([10.0], [2.0], hours=[1.0] * 4, rate_qps=[[20.0, 10.0, 20.0, 10.0]])
    assert solve_fleet(problem).counts.tolist() == [[2, 1, 2, 1]]
    cheap = solve_fleet(replace(problem, start_s=np.array([1800.0])))
    assert cheap.counts.tolist() == [[2, 1, 2, 1]]
    assert cheap.starts.tolist() == [[1, 0, 1, 0]]
    assert cheap.objective == pytest.approx(12.0 + 2 * 1.0)
    dear = solve_fleet(replace(problem, start_cost=np.array([3.0])))
    assert dear.counts.tolist() == [[2, 2, 2, 2]]
    assert dear.objective == pytest.approx(16.0)
    once = solve_fleet(replace(problem, start_cost=np.array([3.0]), cyclic=False))
    assert once.starts.tolist() == [[2, 0, 0, 0]]
    assert once.objective == pytest.approx(14.0 + 6.0)  # the last period may stop one for good


def test_committed_gpus_are_bought_for_the_base_and_rented_ones_for_the_peak() -> None:
    problem = one_class(
        [10.0, 10.0], [1.0, 1.6], hours=[1.0, 1.0, 1.0], rate_qps=[[10.0, 10.0, 30.0]], committed=[True, False]
    )
    result = solve_fleet(problem)
    assert result.bought.tolist() == [1, 0]
    assert result.counts[:, 2].tolist() == [1, 2]
    assert result.objective == pytest.approx(3 * 1.0 + 2 * 1.6)
    assert result.held.tolist() == [[1, 1, 1], [0, 0, 2]]


def test_whole_nodes_are_paid_for() -> None:
    problem = one_class([4.0], [1.0], node_gpus=[8], gpus=[3])  # three replicas of 3 GPUs, two to a node
    result = solve_fleet(problem)
    assert result.held.tolist() == [[16]]
    assert result.objective == pytest.approx(16.0)
    assert solve_fleet(replace(problem, inventory=np.array([15.0]))).status == "infeasible"


def test_the_power_cap_and_the_mean_quality_shift_the_load() -> None:
    """Cheap, hungry and coarse against dear, frugal and fine: half of the requests have to move."""
    problem = one_class(
        [5.0, 5.0], [1.0, 3.0], dynamic_j=[[100.0, 20.0]], quality=[[0.9, 1.0]], mean_quality=[0.0], idle_w=[0.0, 0.0]
    )
    assert solve_fleet(problem).counts.tolist() == [[2], [0]]
    floored = solve_fleet(replace(problem, mean_quality=np.array([0.95])))
    assert floored.counts.tolist() == [[1], [1]]
    assert floored.measures["quality"] >= 0.95 - 1e-6
    capped = solve_fleet(replace(problem, power_cap_w=600.0))
    assert capped.counts.tolist() == [[1], [1]]
    assert capped.measures["energy"] <= 0.6 + 1e-6
    assert solve_fleet(replace(problem, power_cap_w=150.0)).status == "infeasible"


def test_weights_limits_and_later_measures() -> None:
    problem = one_class([10.0, 10.0], [1.0, 2.0], idle_w=[300.0, 100.0], carbon=[500.0], energy_price=[1.0])
    assert solve_fleet(problem).measures["cost"] == pytest.approx(1.3)
    energy = replace(problem, objective=(("energy", 1.0),))
    assert solve_fleet(energy).counts.tolist() == [[0], [1]]
    assert solve_fleet(replace(problem, at_most={"carbon": 0.1})).counts.tolist() == [[0], [1]]
    gpus = replace(problem, objective=(("gpus", 1.0),), then=("energy",))
    assert solve_fleet(gpus).counts.tolist() == [[0], [1]]
    assert solve_fleet(replace(gpus, then=("cost",))).counts.tolist() == [[1], [0]]


def test_two_spare_replicas() -> None:
    """One big replica carries all; after the loss of any two, one of three big or two of four small are left."""
    problem = one_class([10.0, 5.0], [3.0, 1.4])
    assert solve_fleet(replace(problem, spare=1)).counts.tolist() == [[0], [3]]
    assert solve_fleet(replace(problem, spare=2)).counts.tolist() == [[0], [4]]


def test_more_spare_replicas_than_there_can_be_replicas_are_infeasible_at_once() -> None:
    problem = one_class([10.0, 5.0], [3.0, 1.4], inventory=[4.0, 3.0], gpus=[2, 1], spare=5)
    assert solve_fleet(problem, time_limit_s=0.0).status == "infeasible"
    assert solve_fleet(replace(problem, spare=4), time_limit_s=5.0).status == "infeasible"
    assert solve_fleet(replace(problem, spare=2)).status == "optimal"


def test_the_load_is_spread_evenly_where_nothing_is_lost_by_it() -> None:
    problem = one_class([8.0, 4.0], [3.0, 1.6], rate_qps=[[9.0]])
    result = solve_fleet(problem)
    assert result.counts.tolist() == [[1], [1]]
    np.testing.assert_allclose(result.share[0, :, 0], [8 / 12, 4 / 12], rtol=1e-5)


def test_no_demand_no_fleet() -> None:
    result = solve_fleet(one_class([8.0], [3.0], rate_qps=[[0.0]]))
    assert (result.status, result.objective) == ("optimal", 0.0)
    assert not result.counts.any()


def test_unserved_demand_is_infeasible() -> None:
    result = solve_fleet(one_class([0.0], [1.0]))
    assert (result.status, result.objective, result.bound) == ("infeasible", None, None)


def test_no_time_at_all(reference: Any) -> None:
    result = solve_fleet(reference.make_fleet(0), time_limit_s=0.0)
    assert (result.status, result.objective) == ("no-solution", None)


def at_most(left: FleetResult, right: FleetResult) -> bool:
    """Whether the left objective is no higher; an infeasible one is highest."""
    low, high = (np.inf if one.objective is None else one.objective for one in (left, right))
    return low <= high * (1 + 1e-6) + 1e-6


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1000, 9999), st.floats(1.05, 3.0), st.integers(1, 8))
def test_demand_and_limits_move_the_objective_the_right_way(
    reference: Any, seed: int, growth: float, more: int
) -> None:
    problem = replace(reference.make_fleet(seed), then=())
    result = solve_fleet(problem, mip_gap=0.0)
    assert result.status in ("optimal", "infeasible")
    if result.status == "optimal":
        reference.check_fleet(problem, result)
    assert at_most(result, solve_fleet(replace(problem, rate_qps=problem.rate_qps * growth), mip_gap=0.0))
    looser = replace(
        problem,
        inventory=problem.inventory + more * problem.node_gpus,
        power_cap_w=problem.power_cap_w * growth,
        mean_quality=problem.mean_quality * 0.99,
        spare=max(problem.spare - 1, 0),
    )
    assert at_most(solve_fleet(looser, mip_gap=0.0), result)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(10_000, 99_999), st.sampled_from([0.01, 0.05, 0.3]), st.integers(0, 2))
def test_no_limit_is_broken_however_little_time_there_is(
    reference: Any, seed: int, time_limit_s: float, spare: int
) -> None:
    """Whole replicas, demand, inventory, nodes, power, floors and losses hold of every fleet that is returned."""
    problem = replace(reference.make_fleet(seed), spare=spare)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(solve, "_SMALL", -1)
        patched.setattr(solve, "_FEW", 1)
        result = solve_fleet(problem, time_limit_s=time_limit_s)
    if result.objective is not None:
        reference.check_fleet(problem, result)
        assert result.bound is None or result.bound <= result.objective


def test_replicas_are_added_until_any_loss_is_survived() -> None:
    """Two fill the demand; of three the loss of one is survived, and the cheaper option makes up for it."""
    problem = replace(one_class([5.0, 5.0], [1.0, 1.2]), spare=1)
    program, _ = with_runs(weighing(problem, np.arange(2)))
    values = np.zeros(len(program.matrix.cost))
    values[program.count[1]] = 2
    backend = open_backend("highs")
    counts = reinforced(program, values, backend)
    assert counts is not None
    assert counts.tolist() == [[1], [2]]
    scarce = replace(problem, inventory=np.array([0.0, 2.0]))
    program, _ = with_runs(weighing(scarce, np.arange(2)))
    assert reinforced(program, values, backend) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hours": [0.0]}, r"hours of 'period 0': expected a finite number above 0, found 0"),
        ({"rate_qps": [[-1.0]]}, r"rate_qps of 'bucket 0', 'period 0': expected a finite number at least 0"),
        ({"pool": [0, 2]}, r"pool of 'd1': expected a whole number at least 0 and below 2, found 2"),
        ({"node_gpus": [1, 0]}, r"node_gpus of 'pool1': expected a whole number at least 1"),
        ({"power_cap_w": 0.0}, r"power_cap_w 0: expected more than 0 watts"),
        ({"power_cap_w": float("nan")}, r"power_cap_w nan: expected more than 0 watts"),
        ({"spare": -1}, r"spare -1: expected 0 or more"),
        ({"objective": (("coast", 1.0),)}, r"objective: unknown 'coast'; expected cost, .*; did you mean 'cost'\?"),
        ({"objective": (("cost", 0.0),)}, r"at least one measure with a weight above 0"),
        ({"objective": (("cost", -1.0),)}, r"weight -1 of cost; expected a finite number at least 0"),
        ({"then": ("qualty",)}, r"then: unknown 'qualty'; .*did you mean 'quality'\?"),
        ({"at_most": {"energy": -1.0}}, r"at_most: energy -1; expected a number at least 0"),
        ({"classes": []}, r"needs classes and options; it has 0 and 2"),
    ],
)
def test_bad_input_names_the_entry(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        one_class([1.0, 2.0], [1.0, 1.0], **change)
