"""The online rule: in plain Python, and as the simulator compiles it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.policy import Policy
from qplan.models.simulator.simulation import simulate
from qplan.solvers.routing.compiled import ruled
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.online import OnlineRule, ReplicaState, Request, choose, corrected, place_at, read_at
from qplan.solvers.routing.solving import misled, solve_policy

Modelled = Callable[..., FleetModel]


@pytest.fixture(scope="module")
def policy(modelled: Modelled) -> Policy:
    """The policy of the small fleet: groups of two, the second cheaper."""
    return solve_policy(modelled(), levels=4, deadlines_s={"nightly": 600.0})


@pytest.fixture(scope="module")
def strict(modelled: Modelled) -> Policy:
    """A policy that must serve most chats on the first group, for their quality."""
    return solve_policy(modelled("99.95%"), levels=4)


def fresh(policy: Policy) -> list[ReplicaState]:
    return [ReplicaState(group) for group in policy.group_of]


def relaxed(policy: Policy) -> Policy:
    """Return the policy without a floor on quality and without deadlines."""
    classes = tuple(replace(one, quality_floor=None, deadline_s=None) for one in policy.classes)
    return replace(policy, classes=classes)


@pytest.mark.parametrize("rate", [2.0, 9.0, 25.0])
def test_the_compiled_rule_chooses_alike(rate: float, strict: Policy, modelled: Modelled) -> None:
    model = modelled("99.95%")
    drawn = model.lengths.draw(rate, 400, seed=3)
    served = simulate(drawn, model.replicas, ruled(strict, gain=0.0))
    first_s, end_s = served.arrivals_s + served.ttft_s, served.arrivals_s + served.e2e_s
    rule = OnlineRule(strict)
    chosen: list[int | None] = []
    expected: list[float] = []
    for n in range(len(drawn)):
        now_s = float(drawn.arrivals_s[n])
        states = fresh(strict)
        for m in range(n):
            state = states[served.replica[m]]
            if not end_s[m] <= now_s:
                state.in_flight += 1
                state.held_tokens += expected[m]
                state.waiting_tokens += 0.0 if first_s[m] <= now_s else float(drawn.input_tokens[m])
        name = strict.buckets[drawn.buckets[n]].request_class
        found = rule.choose(Request(name, int(drawn.input_tokens[n])), states, now_s)
        chosen.append(found.replica)
        expected.append(found.expected_tokens)
    assert chosen == served.replica.tolist()
    assert len(set(chosen)) > (rate > 5)


def test_the_mean_quality_never_falls_below_its_floor(strict: Policy, modelled: Modelled) -> None:
    model = modelled("99.95%")
    drawn = model.lengths.draw(6.0, 600, seed=5)
    served = simulate(drawn, model.replicas, ruled(strict))
    chats = model.lengths.request_class[drawn.buckets] == model.lengths.names.index("chat")
    quality = np.array([group.quality.get("chat", np.nan) for group in strict.groups])
    mean = np.cumsum(quality[model.group_of[served.replica[chats]]]) / np.arange(1, chats.sum() + 1)
    assert (mean >= 0.9995 - 1e-9).all()
    assert {2, 3} & set(served.replica[chats].tolist())  # some go to the coarser replicas all the same


def serving(policy: Policy, *counts: int) -> Policy:
    """Return the policy with so many replicas of each group planned at any load."""
    return replace(relaxed(policy), levels=tuple(replace(level, serving=counts) for level in policy.levels))


def test_requests_gather_on_as_few_as_are_planned_and_there_on_the_emptiest(policy: Policy) -> None:
    states = fresh(policy)
    states[2].in_flight, states[2].held_tokens = 5, 3000.0
    assert choose(serving(policy, 0, 1), Request("chat", 200), states) == 2
    assert choose(serving(policy, 0, 2), Request("chat", 200), states) == 3
    states[2].up = False  # then another is the first
    states[3].in_flight = 5
    assert choose(serving(policy, 0, 1), Request("chat", 200), states) == 3


def test_a_full_replica_spills_to_the_next(policy: Policy) -> None:
    states = fresh(policy)
    states[2].in_flight = states[3].in_flight = 60
    states[2].waiting_tokens = states[3].waiting_tokens = 40_000.0  # some four seconds of prefill
    found = OnlineRule(relaxed(policy)).choose(Request("chat", 200), states, 0.0)
    assert found.replica in (0, 1)
    assert not found.spilled
    for state in states:
        state.waiting_tokens = 90_000.0
    states[1].waiting_tokens = 30_000.0
    found = OnlineRule(relaxed(policy)).choose(Request("chat", 200), states, 0.0)
    assert found.replica == 1
    assert found.spilled


def test_replicas_that_are_down_get_nothing(policy: Policy) -> None:
    states = fresh(policy)
    for state in states[1:]:
        state.up = False
    assert choose(relaxed(policy), Request("chat", 200), states) == 0
    states[0].up = False
    found = OnlineRule(policy).choose(Request("chat", 200), states, 0.0)
    assert (found.replica, found.wait_s) == (None, None)


def test_a_cached_prefix_brings_a_session_home(policy: Policy) -> None:
    free = replace(serving(policy, 0, 2), miss_j=10 * policy.miss_j)
    states = fresh(policy)
    states[2].in_flight = states[3].in_flight = 3
    assert choose(free, Request("chat", 2000), states) == 2
    assert choose(free, Request("chat", 2000, home=3, cached_tokens=1900), states) == 3


def test_what_may_wait_waits_for_a_batch_until_its_deadline(policy: Policy) -> None:
    rule, states = OnlineRule(policy), fresh(policy)
    request = Request("nightly", 900, arrived_s=0.0)
    held = rule.choose(request, states, 0.0)
    assert held.replica is None
    assert held.wait_s is not None
    assert rule.choose(request, states, 600.0).replica is not None
    states[2].in_flight = 2
    assert OnlineRule(policy).choose(request, states, 0.0).replica == 2


def test_predictions_follow_what_is_observed(policy: Policy) -> None:
    rule, state = OnlineRule(policy), ReplicaState(1)
    for n in range(5000):
        states = [ReplicaState(0, up=False), ReplicaState(0, up=False), state, ReplicaState(1, up=False)]
        found = rule.choose(Request("chat", 300), states, float(n))
        true_s = 2.0 * found.ttft_s / state.ttft_ratio
        rule.observe(state, found, true_s, None)
    assert state.ttft_ratio == pytest.approx(2.0, rel=0.02)
    assert state.tpot_ratio == 1.0
    assert corrected(1.0, 1e9) < 4.0 < corrected(4.0, 1e9) + 1e-9


def test_replicas_sleep_after_the_load_and_wake_at_once(policy: Policy) -> None:
    rule = OnlineRule(replace(policy, hold_s=60.0, headroom=1.3))
    for n in range(2000):
        rule.arrived("chat", 300, n / 20)  # 20 req/s for 100 s
    assert rule.load_qps(100.0) == pytest.approx(20.0, rel=0.5)
    busy = rule.awake(100.0)
    assert rule.awake(130.0) == busy  # held
    quiet = [rule.awake(130.0 + n) for n in range(200)][-1]
    assert sum(quiet) < sum(busy)
    for n in range(2000):
        rule.arrived("chat", 300, 400.0 + n / 20)
    assert sum(rule.awake(500.0)) > sum(quiet)


def test_asking_again_is_no_arrival(policy: Policy) -> None:
    rule = OnlineRule(policy)
    for n in range(200):
        rule.choose(Request("chat", 300), fresh(policy), n / 20)
    before = rule.load_qps(10.0)
    for _ in range(200):
        rule.choose(Request("chat", 300, asked_s=9.0), fresh(policy), 10.0)
    assert rule.load_qps(10.0) == before > 0


def test_an_unknown_class_is_named(policy: Policy) -> None:
    with pytest.raises(InputError, match=r"unknown class 'chats'.*did you mean|chat"):
        choose(policy, Request("chats", 100), fresh(policy))


def test_values_between_and_beyond_points() -> None:
    axis, values = (1.0, 2.0, 4.0), (1.0, 3.0, 5.0)
    for at, expected in ((0.5, 1.0), (1.0, 1.0), (1.5, 2.0), (3.0, 4.0), (8.0, 9.0)):
        assert read_at(values, *place_at(axis, at)) == pytest.approx(expected)
    assert read_at((2.0,), *place_at((1.0,), 3.0)) == pytest.approx(6.0)


def test_a_policy_misled_is_wrong_about_the_order_of_groups_too(policy: Policy) -> None:
    wrong = misled(policy, times=1.3, lengths=0.5)
    ratios = [after.tpot_s[0] / before.tpot_s[0] for before, after in zip(policy.groups, wrong.groups, strict=True)]
    assert ratios == pytest.approx([1.3, 1 / 1.3])
    assert wrong.buckets[0].output_tokens == pytest.approx(0.5 * policy.buckets[0].output_tokens)
