"""Verifying plans, and planning again until they hold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from qplan.core.errors import InfeasibleError
from qplan.core.slo import Slo
from qplan.models.iterations import IterationGrid
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.steptimes import Bools, Floats
from qplan.solvers.fleet.replay import BATCHES, PlannedFleet
from qplan.solvers.fleet.tighten import APART, ROUNDS, STEP, shared, tighten
from qplan.solvers.fleet.verify import Attainment, share_of, verify

DEMAND_QPS = 100.0
SERVICE_S = 0.02
PREDICTED_QPS = 55.0  # what one carries "by prediction", which is more than it can


def replica() -> Replica:
    """Prompts one at a time, 20 ms each; answers are one token."""
    tokens, batches, contexts = np.array([0.0, 100.0]), np.array([0.0, 1.0]), np.array([1.0, 2.0])
    time = np.repeat(np.array([[0.0, SERVICE_S], [SERVICE_S, 2 * SERVICE_S]])[:, :, None], 2, axis=2)
    return Replica("one", IterationGrid(tokens, batches, contexts, time), 10_000, 1000, Batching(100, 1))


def fleet(counts: list[int], ttft_s: float = 0.1) -> PlannedFleet:
    each = np.array(counts, dtype=float)
    return PlannedFleet(
        classes=("prompts",),
        slos=((Slo("ttft", ttft_s, 90.0),),),
        bucket_class=np.zeros(1, np.intp),
        kind_bucket=np.zeros(1, np.intp),
        input_tokens=np.array([100]),
        output_tokens=np.array([1]),
        rate_qps=np.array([[DEMAND_QPS]]),
        options=tuple("abcdef"[: len(counts)]),
        replicas=tuple(replica() if n else None for n in counts),
        counts=np.array(counts)[:, None],
        share=(each / each.sum())[None, :, None],
        available=np.ones(len(counts)),
        recorded=(None,),
    )


def served(options: int) -> Bools:
    """One class on all options."""
    return np.ones((1, options), bool)


class Planner:
    """Takes the option that is first with the most capacity, as many replicas as its capacity asks for."""

    def __init__(self, options: int) -> None:
        self.factors: list[Floats] = []
        self.options = options

    def __call__(self, factor: Floats) -> list[int]:
        self.factors.append(factor.copy())
        best = int(factor[0].argmax())
        counts = [0] * self.options
        counts[best] = int(np.ceil(DEMAND_QPS / (PREDICTED_QPS * factor[0, best])))
        return counts


def test_attainment_of_a_queue_is_that_of_its_formula() -> None:
    """M/D/1 at 2/3: P(wait <= 4 services), by Crommelin's formula."""
    found = verify(fleet([3]), requests=100_000, seed=3)
    (one,) = found.attainments
    rho, waits = DEMAND_QPS / 3 * SERVICE_S, 4
    terms = [(-rho * (waits - j)) ** j / _factorial(j) * np.exp(rho * (waits - j)) for j in range(waits + 1)]
    assert one.share == pytest.approx((1 - rho) * sum(terms), abs=0.01)
    assert one.lower < one.share < one.upper
    assert one.requests == found.requests == pytest.approx(100_000, rel=0.02)


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1, n + 1)))


def test_a_plan_that_falls_short_is_made_again_until_it_holds() -> None:
    plan = Planner(1)
    made = tighten(served(1), plan, fleet, requests=20_000)
    assert not made.first.reached
    assert made.verification.holds
    assert made.result[0] > int(np.ceil(DEMAND_QPS / PREDICTED_QPS)) - 1
    assert made.rounds == len(plan.factors) == 2
    fresh = verify(fleet(made.result), requests=20_000, seed=99)
    assert fresh.reached


def test_a_plan_that_holds_is_left_alone() -> None:
    made = tighten(served(1), lambda factor: [4], fleet, requests=5_000)
    assert made.rounds == 1
    assert made.factor.tolist() == [[1.0]]
    assert made.first is made.verification


def test_options_that_share_a_fault_are_not_tried_one_by_one() -> None:
    plan = Planner(6)
    made = tighten(served(6), plan, fleet, requests=10_000)
    assert made.verification.holds
    assert made.rounds == APART + 1
    assert (np.diff(np.array(plan.factors), axis=0) <= 0).all()  # capacities never rise


def test_what_a_trace_asks_of_one_option_goes_for_its_class_on_all_at_once() -> None:
    found = np.ones((2, 4))
    found[0, 0] = 0.5  # the first class on an option of its own
    found[:, 3] = 0.9  # both on an option that they share
    serves = np.array([[True, True, False, True], [False, False, True, True]])
    traced = shared(found, serves, [True, False], 1)
    np.testing.assert_array_equal(traced, [[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 0.9]])
    np.testing.assert_array_equal(shared(found, serves, [False, False], APART - 1), found)
    np.testing.assert_array_equal(shared(found, serves, [False, False], APART), traced)
    late = shared(found, serves, [False, False], 2 * APART)
    assert late[0, 0] == late[0, 1] == 0.5


def test_the_loop_ends_where_nothing_helps() -> None:
    plan: list[Floats] = []

    def stubborn(factor: Floats) -> list[int]:
        plan.append(factor)
        return [1]

    with_too_little = tighten(served(1), stubborn, lambda counts: fleet(counts, ttft_s=0.021), requests=500)
    assert with_too_little.rounds == ROUNDS
    assert not with_too_little.verification.holds
    assert all(after[0, 0] <= before[0, 0] * (1 - STEP) for before, after in pairwise(plan))


def test_no_plan_with_less_capacity_is_told_as_such() -> None:
    def solve(factor: Floats) -> list[int]:
        if factor[0, 0] < 1:
            raise InfeasibleError("no GPUs are left", constraint="inventory", nearest=("more GPUs",))
        return [2]

    with pytest.raises(InfeasibleError, match=r"no fleet reaches its SLOs in simulation.*no GPUs are left") as raised:
        tighten(served(1), solve, lambda counts: fleet([3], ttft_s=0.03), requests=2_000)
    assert raised.value.nearest == ("more GPUs",)


def test_a_first_plan_that_is_infeasible_says_only_so() -> None:
    def solve(factor: Floats) -> list[int]:
        raise InfeasibleError("no GPUs", constraint="inventory")

    with pytest.raises(InfeasibleError, match=r"^no GPUs$"):
        tighten(served(1), solve, fleet)


def test_intervals_are_wider_where_requests_hang_together() -> None:
    requests = np.full(BATCHES, 100)
    spread = np.where(np.arange(BATCHES) % 4 == 0, 60, 100)  # as many misses, in some parts of the time
    even = np.full(BATCHES, 90)
    (share, clumped), (same, independent) = share_of(spread, requests), share_of(even, requests)
    assert share == same == 0.9
    assert clumped > 5 * independent
    assert independent == pytest.approx(0.09 / 2000, rel=0.05)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    runs = [verify(fleet([3]), requests=1_500, seed=seed).attainments[0] for seed in range(60)]
    exact = float(np.mean([one.share for one in runs]))
    covered = sum(one.lower <= exact <= one.upper for one in runs)
    assert covered >= 52  # of 60; 57 in the mean


def test_nothing_seen_is_nothing_known() -> None:
    share, variance = share_of(np.zeros(BATCHES, int), np.zeros(BATCHES, int))
    assert (share, variance) == (1.0, 0.25)


def test_in_doubt_is_not_held() -> None:
    slo = Slo("ttft", 1.0, 90.0)
    doubtful = Attainment("chat", slo, 0, 0.905, 0.895, 0.915, 1000)
    assert doubtful.reached
    assert not doubtful.certain


def test_told_as_plain_data() -> None:
    told = tighten(served(1), Planner(1), fleet, requests=3_000).to_json()
    assert told["rounds"] >= 2
    assert told["least_factor"] < 1
    assert told["attainments"][0]["class"] == "prompts"
    assert told["attainments"][0]["target"] == 0.9
    assert told["first"]["holds"] is False
