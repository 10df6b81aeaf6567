"""When requests that may wait begin: cases that are solved by hand, and what a paced policy lets a router do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core.demand import Demand
from qplan.core.errors import InputError
from qplan.core.policy import Policy
from qplan.solvers.backends import open_backend
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.online import OnlineRule, ReplicaState, Request
from qplan.solvers.routing.pacing import begun, paced, waits
from qplan.solvers.routing.solving import solve_policy
from qplan.solvers.routing.trying import Trial

Modelled = Callable[..., FleetModel]
HOUR = 3600.0
LINE = [(1.0, 0.0), (10.0, -90.0)]


def by_hand(came: list[float], carbon: list[float], deadline_s: float, lines: list[tuple[float, float]]) -> list[float]:
    edges_s = np.linspace(0.0, HOUR * len(came), len(came) + 1)
    found, _ = begun(
        np.array([came]),
        np.ones(1),
        np.array([deadline_s]),
        edges_s,
        np.array(carbon),
        [lines] * len(came),
        open_backend("highs"),
    )
    return [float(one) for one in found[0]]


def test_a_cleaner_period_is_waited_for_as_far_as_the_deadline_lets() -> None:
    each = [HOUR, HOUR, HOUR]
    assert by_hand(each, [300, 100, 200], HOUR, LINE) == pytest.approx([0, 2 * HOUR, HOUR])
    # Half of what comes in the first hour is due in it.
    assert by_hand(each, [300, 100, 200], HOUR / 2, LINE) == pytest.approx([HOUR / 2, 1.5 * HOUR, HOUR])
    assert by_hand(each, [200, 200, 200], HOUR, LINE) == pytest.approx(each)
    # The day repeats: what comes in its last hour begins in the first of the next.
    assert by_hand(each, [100, 200, 300], HOUR, LINE) == pytest.approx([2 * HOUR, HOUR, 0])


def test_no_cleaner_period_is_filled_beyond_where_it_costs_the_same() -> None:
    rising = [(1.0, 0.0), (4.0, -4.5), (40.0, -400.0)]  # four times as steep from 1.5 requests/s on
    assert by_hand([HOUR, HOUR], [300, 100], HOUR, rising) == pytest.approx([HOUR / 2, 1.5 * HOUR])
    assert by_hand([HOUR, HOUR], [500, 100], HOUR, rising) == pytest.approx([0, 2 * HOUR])


def test_who_comes_first_begins_first() -> None:
    edges_s = np.linspace(0.0, 3 * HOUR, 4)
    found = waits(edges_s, np.full(3, HOUR), np.array([0, 2 * HOUR, HOUR]), 0.0, HOUR)
    assert dict(found)[0.0] == pytest.approx(HOUR)  # from the last of equal times on
    assert dict(found)[HOUR] == pytest.approx(HOUR / 2)
    assert dict(found)[2 * HOUR] == 0.0
    assert found[-2:] == ((3 * HOUR, 0.0), (3 * HOUR, HOUR))


@pytest.mark.parametrize("seed", range(4))
def test_as_many_begin_in_a_period_as_the_program_says_and_in_time(seed: int) -> None:
    random = np.random.default_rng(seed)
    periods, deadline_s = 8, float(random.uniform(0.3, 12.0)) * HOUR
    came = np.where(random.random(periods) < 0.8, random.uniform(0, 100, periods), 0.0)
    edges_s = HOUR * np.append(0.0, np.cumsum(random.uniform(0.5, 2.0, periods)))
    lines = [[(1.0, 0.0), (3.0, -0.05), (30.0, -1.0)]] * periods
    found, backlog = begun(
        came[None], np.ones(1), np.array([deadline_s]), edges_s, random.uniform(50, 500, periods), lines,
        open_backend("highs"),
    )  # fmt: skip
    assert found.sum() == pytest.approx(came.sum())
    at_s, wait_s = np.array(waits(edges_s, came, found[0], backlog[0], deadline_s)).T
    assert (np.diff(at_s) >= 0).all()
    assert wait_s.min() >= 0
    assert wait_s.max() <= deadline_s
    count = 200_000
    arrivals_s = np.interp((np.arange(count) + 0.5) / count * came.sum(), np.append(0, np.cumsum(came)), edges_s)
    begins_s = arrivals_s + np.interp(arrivals_s, at_s, wait_s)
    assert (np.diff(begins_s) > -0.01).all()
    there = np.histogram(begins_s % edges_s[-1], edges_s)[0] / count * came.sum()
    np.testing.assert_allclose(there, found[0], atol=0.01 * came.sum())


def by_day(model: FleetModel, carbon: tuple[float, ...], hours: float = 6.0) -> FleetModel:
    """The model with a demand that is the same in all periods of a day."""
    periods = len(carbon)
    demand: Demand = replace(
        model.demand,
        hours=(hours,) * periods,
        carbon=carbon,
        energy_price=(0.0,) * periods,
        classes=tuple(replace(one, rate_qps=one.rate_qps * periods) for one in model.demand.classes),
    )
    return replace(model, demand=demand)


@pytest.fixture(scope="module")
def patient(modelled: Modelled) -> Policy:
    """A policy whose second class may wait for eight hours, of a grid that is clean in the second quarter of a day."""
    model = by_day(modelled(), (400.0, 100.0, 300.0, 400.0))
    return solve_policy(model, levels=4, deadlines_s={"nightly": 8 * HOUR})


def test_a_policy_says_how_long_what_comes_at_a_time_waits(patient: Policy) -> None:
    assert patient.horizon_s == 24 * HOUR
    assert patient.class_named("chat").waits == ()
    nightly = patient.class_named("nightly")
    assert nightly.waits[0][1] > 5 * HOUR
    assert Policy.from_json(patient.to_json()) == patient
    with pytest.raises(InputError, match="none is longer than the deadline of 100 s"):
        replace(patient, classes=(patient.class_named("chat"), replace(nightly, deadline_s=100.0)))
    with pytest.raises(InputError, match="rise from 0 to its horizon of 5 s"):
        replace(patient, horizon_s=5.0)


def test_a_demand_that_does_not_change_paces_nobody(modelled: Modelled, patient: Policy) -> None:
    model = modelled()
    trial = Trial.of(model, model.lengths.draw(1.0, 500, 0))
    flat = replace(patient, classes=tuple(replace(one, waits=()) for one in patient.classes))
    assert paced(trial, flat, open_backend("highs")) == flat
    nobody = replace(flat, classes=tuple(replace(one, deadline_s=None) for one in flat.classes))
    trial = Trial.of(by_day(model, (400.0, 100.0)), trial.traffic)
    assert paced(trial, nobody, open_backend("highs")) == nobody


def test_a_day_on_which_all_may_wait_and_some_hours_are_empty_is_paced(modelled: Modelled, patient: Policy) -> None:
    day = by_day(modelled(), (400.0, 100.0, 300.0, 400.0))
    chat, nightly = day.demand.classes
    empty = (replace(chat, rate_qps=(0.0,) * 4), replace(nightly, rate_qps=(0.01, 0.0, 0.0, 0.02)))
    model = replace(day, demand=replace(day.demand, classes=empty))
    everyone = tuple(replace(one, deadline_s=8 * HOUR, waits=()) for one in patient.classes)
    trial = Trial.of(model, model.lengths.draw(1.0, 500, 0))
    found = paced(trial, replace(patient, classes=everyone, horizon_s=0.0), open_backend("highs"))
    assert found.class_named("chat").waits == ()
    assert found.class_named("nightly").waits[0][1] > 3 * HOUR


def fresh(policy: Policy, in_flight: int = 2) -> list[ReplicaState]:
    return [ReplicaState(group, in_flight=in_flight) for group in policy.group_of]


def test_a_request_waits_as_the_policy_says_and_counts_when_it_begins(patient: Policy) -> None:
    rule = OnlineRule(patient)
    wait_s = rule.choose(Request("nightly", 900, arrived_s=600.0), fresh(patient), 600.0).wait_s
    assert wait_s is not None
    assert 600.0 + wait_s == rule.begins_s("nightly", 600.0) > 6 * HOUR
    assert rule.load_qps(600.0) == 0.0
    assert OnlineRule(patient).choose(Request("chat", 200), fresh(patient), 600.0).replica is not None
    again = Request("nightly", 900, arrived_s=600.0, asked_s=600.0)
    assert rule.choose(again, fresh(patient), 600.0 + wait_s).replica is not None
    before = rule.load_qps(600.0 + wait_s)
    rule.choose(replace(again, asked_s=600.0 + wait_s), fresh(patient), 600.0 + wait_s)
    assert rule.load_qps(600.0 + wait_s) == before > 0.0


def test_a_day_repeats_and_begins_when_one_says_so(patient: Policy) -> None:
    first = OnlineRule(patient).begins_s("nightly", 600.0) - 600.0
    assert OnlineRule(patient).begins_s("nightly", 600.0 + 48 * HOUR) - 48 * HOUR - 600.0 == pytest.approx(first)
    assert OnlineRule(patient, began_s=500.0).begins_s("nightly", 1100.0) - 1100.0 == pytest.approx(first)


def test_what_begins_joins_a_batch_if_any_runs(patient: Policy) -> None:
    begins_s = OnlineRule(patient).begins_s("nightly", 600.0)
    request, states = Request("nightly", 900, arrived_s=600.0), fresh(patient, 0)
    assert OnlineRule(patient).choose(request, states, begins_s).replica is not None
    best = OnlineRule(patient).choose(request, states, begins_s).replica
    other = next(r for r, state in enumerate(states) if state.group != states[best or 0].group)
    states[other].in_flight = 10_000  # full
    assert OnlineRule(patient).choose(request, states, begins_s).wait_s == pytest.approx(1.0)
    assert OnlineRule(patient).choose(request, states, 600.0 + 8 * HOUR).replica == best
