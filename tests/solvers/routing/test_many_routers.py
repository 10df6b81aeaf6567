"""Routers that see a part of the traffic, requests that wait, and sessions: the compiled rule against the plain one."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.policy import Policy
from qplan.models.simulator.dispatch import Ruled
from qplan.models.simulator.simulation import Served, simulate
from qplan.models.simulator.traffic import Traffic
from qplan.solvers.routing.compiled import ruled
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.online import ASK_AGAIN_S, ASK_GAP_S, OnlineRule, ReplicaState, Request
from qplan.solvers.routing.replaying import replay
from qplan.solvers.routing.solving import solve_policy

Modelled = Callable[..., FleetModel]
SECONDS = 1 / 3600


@pytest.fixture(scope="module")
def patient(modelled: Modelled) -> Policy:
    """A policy whose second class may wait for a while."""
    return solve_policy(modelled(), levels=4, deadlines_s={"nightly": 12.0})


@dataclass
class Sent:
    """A request on its way, as its router notes it."""

    row: int
    router: int
    replica: int
    sent_s: float
    first_s: float
    end_s: float
    waiting: float
    held: float


def by_hand(policy: Policy, dispatch: Ruled, traffic: Traffic, served: Served) -> tuple[list[int | None], list[float]]:
    """Let plain rules choose, who see what was served so far; return where each request goes, and when."""
    routers = (np.random.default_rng(0).random(len(traffic)) * dispatch.routers).astype(int)
    levels = tuple(replace(one, load_qps=one.load_qps / dispatch.routers) for one in policy.levels)
    rules = [OnlineRule(replace(policy, levels=levels)) for _ in range(dispatch.routers)]
    sent: list[Sent] = []
    chosen: list[int | None] = [None] * len(traffic)
    sent_s = [np.nan] * len(traffic)
    events = [(float(at), n, -np.inf) for n, at in enumerate(traffic.arrivals_s)]
    heapq.heapify(events)
    while events:
        now_s, n, asked_s = heapq.heappop(events)
        m = int(routers[n])
        states = [ReplicaState(group) for group in policy.group_of]
        scraped_s = -np.inf
        if dispatch.routers > 1 and np.isfinite(dispatch.scrape_s):
            first_s = dispatch.scrape_s * (1 + m) / dispatch.routers
            scraped_s = first_s + np.floor((now_s - first_s) / dispatch.scrape_s) * dispatch.scrape_s
        for one in sent:
            state = states[one.replica]
            if one.router == m and not one.end_s <= now_s:
                state.in_flight += 1
                state.held_tokens += one.held
                state.waiting_tokens += 0.0 if one.first_s <= now_s else one.waiting
            if one.router != m and one.sent_s < scraped_s < one.end_s and scraped_s >= 0:
                state.in_flight += 1
        session = traffic.sessions[n]
        turns = [
            one
            for one in sent
            if session >= 0 and one.router == m and traffic.sessions[one.row] == session and one.end_s <= now_s
        ]
        last = max(turns, key=lambda one: one.end_s) if turns and dispatch.affinity else None
        prompt = int(traffic.input_tokens[n])
        cached = min(int(traffic.input_tokens[last.row]), prompt) if last else 0
        request = Request(
            policy.buckets[traffic.buckets[n]].request_class,
            prompt,
            home=last.replica if last else None,
            cached_tokens=cached,
            arrived_s=float(traffic.arrivals_s[n]),
            asked_s=asked_s,
        )
        found = rules[m].choose(request, states, now_s)
        if found.wait_s is not None:
            heapq.heappush(events, (now_s + found.wait_s, n, now_s))
            continue
        assert found.replica is not None
        chosen[n], sent_s[n] = found.replica, now_s
        times = (float(served.arrivals_s[n] + served.ttft_s[n]), float(served.arrivals_s[n] + served.e2e_s[n]))
        waiting = prompt - (cached if found.replica == request.home else 0)
        sent.append(Sent(n, m, found.replica, now_s, *times, waiting, found.expected_tokens))
    return chosen, sent_s


def check(policy: Policy, dispatch: Ruled, traffic: Traffic, model: FleetModel) -> Served:
    served = simulate(traffic, model.replicas, dispatch)
    chosen, sent_s = by_hand(policy, dispatch, traffic, served)
    assert chosen == served.replica.tolist()
    np.testing.assert_allclose(served.arrivals_s + served.deferred_s, sent_s, atol=1e-6)
    return served


def without_deadlines(policy: Policy) -> Policy:
    return replace(policy, classes=tuple(replace(one, deadline_s=None) for one in policy.classes))


@pytest.mark.parametrize("scrape_s", [0.5, np.inf])
def test_each_of_several_routers_chooses_like_the_plain_rule(
    scrape_s: float, patient: Policy, modelled: Modelled
) -> None:
    model, policy = modelled(), without_deadlines(patient)
    dispatch = ruled(policy, gain=0.0, routers=2, scrape_s=scrape_s)
    served = check(policy, dispatch, model.lengths.draw(20.0, 300, seed=4), model)
    assert len(set(served.replica.tolist())) > 1


def test_engines_tell_routers_of_each_other(patient: Policy, modelled: Modelled) -> None:
    model, policy = modelled(), without_deadlines(patient)
    traffic = model.lengths.draw(20.0, 2000, seed=7)
    within = {}
    for routers, scrape_s in ((1, 1.0), (8, 1.0), (8, np.inf)):
        served = simulate(traffic, model.replicas, ruled(policy, 0.0, routers=routers, scrape_s=scrape_s))
        within[routers, scrape_s] = float(((served.ttft_s <= 1.0) & ~(served.tpot_s > 0.08)).mean())
    # Eight who each take an eighth of what is there for all of it fill the same replica beyond its SLOs.
    assert within[8, np.inf] < 0.8 < within[1, 1.0] - 0.02 < within[8, 1.0]


@pytest.mark.parametrize("routers", [1, 2])
def test_what_waits_asks_again_like_the_plain_rule(routers: int, patient: Policy, modelled: Modelled) -> None:
    model = modelled()
    dispatch = ruled(patient, 0.0, routers=routers, scrape_s=0.5)
    served = check(patient, dispatch, model.lengths.draw(6.0, 200, seed=2), model)
    assert 0 < served.deferred_s.max() <= 12.0 + 1e-9
    assert (served.deferred_s == 0).sum() > 100


@pytest.mark.parametrize("routers", [1, 2])
def test_what_is_paced_waits_like_the_plain_rule(routers: int, patient: Policy, modelled: Modelled) -> None:
    model = modelled()
    waits = ((0.0, 8.0), (8.0, 2.0), (8.0, 0.0), (14.0, 0.0), (14.0, 12.0), (20.0, 8.0))
    classes = tuple(replace(one, waits=waits if one.deadline_s else ()) for one in patient.classes)
    clean = replace(patient, classes=classes, horizon_s=20.0)
    traffic = model.lengths.draw(8.0, 300, seed=3)
    served = check(clean, ruled(clean, 0.0, routers=routers, scrape_s=0.5), traffic, model)
    nightly = model.lengths.request_class[traffic.buckets] == model.lengths.names.index("nightly")
    starts_s = ((traffic.arrivals_s + served.deferred_s) % 20.0)[nightly]
    in_clean = (starts_s >= 8.0) & (starts_s < 16.0)
    assert in_clean.mean() > 0.7
    assert served.deferred_s.max() <= 12.0 + 1e-9
    assert (served.deferred_s[~nightly] == 0).all()


def test_the_rest_of_a_trace_waits_until_it_is_due(patient: Policy, modelled: Modelled) -> None:
    model = modelled()
    bucket = next(n for n, one in enumerate(patient.buckets) if one.request_class == "nightly")
    count = 5
    traffic = Traffic(np.linspace(0.0, 0.4, count), np.full(count, 900), np.full(count, 4), np.full(count, bucket))
    served = simulate(traffic, model.replicas, ruled(patient))
    assert served.deferred_s[0] == pytest.approx(12.0)  # nobody runs a batch that it could join
    assert not np.isnan(served.e2e_s).any()


@pytest.mark.parametrize("routers", [1, 2])
def test_sessions_come_home_like_the_plain_rule(routers: int, patient: Policy, modelled: Modelled) -> None:
    model, policy = modelled(), without_deadlines(patient)
    traffic = model.lengths.converse(8.0, 250, 5, 4.0, 8000)
    served = check(policy, ruled(policy, 0.0, routers=routers, scrape_s=0.5), traffic, model)
    assert (served.cached_tokens > 0).sum() > 50


def test_who_remembers_sessions_prefills_less(patient: Policy, modelled: Modelled) -> None:
    model, policy = modelled(), without_deadlines(patient)
    traffic = model.lengths.converse(25.0, 2000, 5, 4.0, 8000)
    home, anywhere = (simulate(traffic, model.replicas, ruled(policy, affinity=affinity)) for affinity in (True, False))
    assert home.cached_tokens.sum() > 1.05 * anywhere.cached_tokens.sum()
    assert home.ttft_s.mean() < anywhere.ttft_s.mean()


def test_conversations_grow(modelled: Modelled) -> None:
    lengths = modelled().lengths
    traffic = lengths.converse(5.0, 4000, 1, 4.0, 6000)
    assert len(traffic) == 4000
    assert (traffic.input_tokens + traffic.output_tokens).max() <= 6000
    per_session = np.bincount(traffic.sessions)
    assert 3.0 < per_session.mean() <= 4.3
    classes = lengths.request_class[traffic.buckets]
    for session in range(20):
        rows = np.flatnonzero(traffic.sessions == session)
        given, made = traffic.input_tokens[rows], traffic.output_tokens[rows]
        assert (given[1:] > given[:-1] + made[:-1]).all()
        assert len(set(classes[rows].tolist())) == 1
    assert (lengths.bucket_of(classes, traffic.input_tokens) == traffic.buckets).all()


def fresh(policy: Policy, in_flight: int = 0) -> list[ReplicaState]:
    return [ReplicaState(group, in_flight=in_flight) for group in policy.group_of]


def test_those_that_wait_are_asked_in_turn(patient: Policy) -> None:
    rule, states = OnlineRule(patient), fresh(patient)
    waits = [rule.choose(Request("nightly", 900), states, 0.0).wait_s for _ in range(3)]
    assert waits == pytest.approx([ASK_AGAIN_S + n * ASK_GAP_S for n in range(3)])
    assert rule.choose(Request("nightly", 900, arrived_s=-11.5), states, 0.0).wait_s == pytest.approx(0.5)


def test_carbon_follows_the_hours(patient: Policy, modelled: Modelled) -> None:
    model = modelled()
    traffic = model.lengths.draw(4.0, 400, seed=1)
    classes = model.lengths.request_class[traffic.buckets]
    found = {}
    # What comes in the first half waits for the second.
    waits = ((0.0, 9.0), (9.0, 0.0), (18.0, 0.0))
    paced = tuple(replace(one, waits=waits if one.deadline_s else ()) for one in patient.classes)
    for carbon in ((300.0, 300.0), (400.0, 100.0)):
        demand = replace(
            model.demand,
            hours=(9.0 * SECONDS, 9.0 * SECONDS),
            carbon=carbon,
            energy_price=(0.0, 0.0),
            classes=tuple(replace(one, rate_qps=one.rate_qps * 2) for one in model.demand.classes),
        )
        for told in (True, False):
            policy = replace(patient, classes=paced, horizon_s=18.0) if told else patient
            result = replay(replace(model, demand=demand), policy, traffic, classes, names=["energy"]).named("energy")
            assert result.carbon_kg is not None
            found[carbon, told] = result
    flat = found[(300.0, 300.0), True]
    assert flat.carbon_kg == pytest.approx(0.3 * flat.energy_j / 3.6e6, rel=1e-3)
    cleaner, same = found[(400.0, 100.0), True], found[(400.0, 100.0), False]
    assert cleaner.carbon_kg is not None
    assert same.carbon_kg is not None
    assert cleaner.carbon_kg / cleaner.energy_j < same.carbon_kg / same.energy_j
    assert cleaner.deferred_s[model.lengths.names.index("chat")] == 0.0


def test_a_rule_of_wrong_shape_is_refused(patient: Policy) -> None:
    made = ruled(patient)
    with pytest.raises(InputError, match="rule: work of shape"):
        replace(made, rule=made.rule._replace(work=np.zeros(1)))
    with pytest.raises(InputError, match="groups of replicas from 0 to 1"):
        replace(made, groups=np.array([0, 2]))
    with pytest.raises(InputError, match="0 routers"):
        replace(made, routers=0)
