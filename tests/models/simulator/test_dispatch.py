"""Policies that know the request, and replicas that come and go, against plain Python that runs every iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qplan.core import InputError
from qplan.models.simulator.dispatch import Among, Dispatch, Scored, Split
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.simulation import Served, Simulation, simulate
from qplan.models.simulator.traffic import Traffic

Make = Callable[..., Replica]
MadeTraffic = Callable[..., Traffic]
FleetStepByStep = Callable[..., tuple[list[Any], list[int | None]]]


def with_buckets(traffic: Traffic, buckets: int) -> Traffic:
    return replace(traffic, buckets=np.random.default_rng(9).integers(0, buckets, len(traffic)))


def mixed_fleet(made_up: Make) -> list[Replica]:
    return [
        made_up(seed=1),
        made_up(seed=2, weight=2.0),
        made_up(Batching(64, 4, 8, chunked_prefill=False), kv_tokens=900, seed=3),
    ]


def is_up(replica: Replica, at_s: float) -> bool:
    return any(start_s <= at_s < end_s for start_s, end_s in replica.up_s)


def check_equal(served: Served, expected: list[Any], chosen: list[int | None]) -> None:
    assert served.replica.tolist() == [-1 if one is None else one for one in chosen]
    for seen, name in ((served.ttft_s, "first_s"), (served.e2e_s, "end_s")):
        times = np.array([getattr(one, name) - one.arrival_s for one in expected])
        np.testing.assert_allclose(seen, times, rtol=1e-9)


@pytest.mark.parametrize("windows", [False, True])
def test_scores_equal_running_every_iteration(
    windows: bool, made_up: Make, traffic_of: MadeTraffic, fleet_step_by_step: FleetStepByStep
) -> None:
    fleet = mixed_fleet(made_up)
    if windows:
        fleet[0] = replace(fleet[0], up_s=((0.0, 0.8), (1.6, np.inf)))
        fleet[1] = replace(fleet[1], up_s=((0.4, 2.0), (2.3, 2.5)))
        fleet[2] = replace(fleet[2], up_s=())
    traffic = with_buckets(traffic_of(4, 120, 40.0), 3)
    random = np.random.default_rng(2)
    scores = np.round(random.uniform(0, 3, (3, 2, 4)))  # with ties
    scores[1, 0, 2:] = scores[2, 1] = np.inf
    groups = np.array([0, 1, 0])
    assigned = [0] * 3

    def choose(row: int, in_flight: list[int]) -> int | None:
        up = [r for r in range(3) if is_up(fleet[r], float(traffic.arrivals_s[row]))]
        score = [scores[traffic.buckets[row], groups[r], min(in_flight[r], 3)] for r in range(3)]
        able = [r for r in up if np.isfinite(score[r])]
        if not able:
            return None
        best = min(
            able, key=lambda r: (score[r], (in_flight[r] + 1) / fleet[r].weight, (assigned[r] + 1) / fleet[r].weight)
        )
        assigned[best] += 1
        return best

    expected, chosen = fleet_step_by_step(traffic, fleet, choose)
    served = simulate(traffic, fleet, Scored(scores, groups))
    check_equal(served, expected, chosen)
    assert set(chosen) == ({0, 1, None} if windows else {0, 1, 2})
    assert (np.isnan(served.e2e_s) == (served.replica < 0)).all()


def test_a_split_equals_running_every_iteration(
    made_up: Make, traffic_of: MadeTraffic, fleet_step_by_step: FleetStepByStep
) -> None:
    fleet = mixed_fleet(made_up)
    fleet[1] = replace(fleet[1], up_s=((0.0, 0.5), (1.0, 3.0)))
    traffic = with_buckets(traffic_of(6, 100, 25.0), 2)
    weights = np.array([[1.0, 3.0, 0.0], [0.0, 2.0, 2.0]])
    draws = np.random.default_rng(5).random(100)

    def choose(row: int, in_flight: list[int]) -> int | None:
        up = [is_up(replica, float(traffic.arrivals_s[row])) for replica in fleet]
        shares = np.cumsum(weights[traffic.buckets[row]] * up)
        return int(np.searchsorted(shares, draws[row] * shares[-1], side="right"))

    expected, chosen = fleet_step_by_step(traffic, fleet, choose)
    check_equal(simulate(traffic, fleet, Split(weights), seed=5), expected, chosen)


def test_a_split_follows_its_weights(made_up: Make) -> None:
    count = 6000
    traffic = with_buckets(Traffic(np.linspace(0.0, 3000.0, count), np.full(count, 8), np.full(count, 2)), 2)
    weights = np.array([[1.0, 3.0, 0.0], [5.0, 0.0, 5.0]])
    served = simulate(traffic, [made_up()] * 3, Split(weights), seed=1)
    for bucket in range(2):
        got = np.bincount(served.replica[traffic.buckets == bucket], minlength=3)
        np.testing.assert_allclose(got / got.sum(), weights[bucket] / weights[bucket].sum(), atol=0.03)
        assert (got[weights[bucket] == 0] == 0).all()


@pytest.mark.parametrize("dispatch", list(Dispatch))
def test_only_replicas_that_are_up_get_requests(dispatch: Dispatch, made_up: Make, traffic_of: MadeTraffic) -> None:
    fleet = [made_up(seed=1), replace(made_up(seed=1), up_s=((10.0, 20.0), (30.0, 40.0)))]
    traffic = traffic_of(3, 400, 8.0)
    served = simulate(traffic, fleet, dispatch, seed=1)
    up = np.array([is_up(fleet[1], float(at)) for at in traffic.arrivals_s])
    assert (served.replica[~up] == 0).all()
    # What came up takes its part from then on, and does not catch up.
    assert served.replica[up].mean() == pytest.approx(0.5, abs=0.1)
    first = served.replica[up][:20]
    assert 5 <= first.sum() <= 15


def test_a_replica_that_goes_down_finishes_what_it_holds(made_up: Make) -> None:
    replica = made_up()
    traffic = Traffic(np.array([0.0, 0.9, 1.1]), np.array([300, 300, 300]), np.array([50, 50, 50]))
    served = simulate(traffic, [replace(replica, up_s=((0.0, 1.0),))])
    always = simulate(traffic.part(0, 2), [replica])
    np.testing.assert_array_equal(served.e2e_s[:2], always.e2e_s)
    assert np.isnan(served.e2e_s[2])
    assert served.replica.tolist() == [0, 0, -1]


def test_a_replica_that_is_down_takes_no_power(made_up: Make) -> None:
    replica = made_up(kv_tokens=400)
    traffic = Traffic(np.array([5.0, 9.99, 25.0]), np.array([100, 300, 100]), np.array([10, 60, 10]))
    simulation = Simulation([replace(replica, up_s=((2.0, 10.0), (20.0, 30.0)))])
    always = Simulation([replica])
    for one in (simulation, always):
        one.offer(traffic)
        one.finish()
    found, whole = simulation.use(60.0).replicas[0], always.use(60.0).replicas[0]
    drained_s = 9.99 + float(simulate(traffic, [replica]).e2e_s[1]) - 10.0
    assert drained_s > 0
    assert found.busy_s == whole.busy_s
    assert found.energy_j is not None
    assert whole.energy_j is not None
    # Off from 0 to 2, from 10 to 20 less what it still served, and from 30 to 60.
    assert whole.energy_j - found.energy_j == pytest.approx(60.0 * (2 + 10 - drained_s + 30))
    assert found.power_w is not None
    assert found.power_w[-1] == 0


def test_buckets_come_back_with_the_requests(made_up: Make, traffic_of: MadeTraffic) -> None:
    traffic = with_buckets(traffic_of(1, 300, 20.0), 4)
    simulation = Simulation([made_up(kv_tokens=300)] * 2)
    done = np.concatenate([simulation.offer(traffic.part(0, 111)), simulation.offer(traffic.part(111, 300))])
    done = np.sort(np.concatenate([done, simulation.finish()]), order="row")
    assert done["bucket"].tolist() == traffic.buckets.tolist()
    assert np.isnan(done["e2e_s"]).any()


def test_bad_tables_and_windows_are_refused(made_up: Make, traffic_of: MadeTraffic) -> None:
    fleet, traffic = [made_up(), made_up()], with_buckets(traffic_of(1, 20, 5.0), 3)
    for weights in (np.ones(2), np.array([[1.0, -1.0]]), np.array([[1.0, np.nan]])):
        with pytest.raises(InputError, match="split"):
            Split(weights)
    with pytest.raises(InputError, match="by bucket, group"):
        Scored(np.full((1, 1, 1), np.nan), np.zeros(2, int))
    with pytest.raises(InputError, match="from 0 to 0"):
        Scored(np.zeros((1, 1, 1)), np.array([0, 1]))
    with pytest.raises(InputError, match="for 3 replicas; the fleet has 2"):
        Simulation(fleet, Split(np.ones((3, 3))))
    with pytest.raises(InputError, match="buckets 0 to 1"):
        simulate(traffic, fleet, Split(np.ones((2, 2))))
    with pytest.raises(InputError, match="below 0"):
        replace(traffic, buckets=traffic.buckets - 1)
    for windows in (
        ((1.0, 1.0),),
        ((3.0, 4.0), (1.0, 2.0)),
        ((0.0, 1.0), (1.0, 2.0)),
        ((-1.0, 2.0),),
        ((0.0, np.nan),),
    ):
        with pytest.raises(InputError, match="in order and apart"):
            replace(fleet[0], up_s=windows)


@pytest.mark.parametrize("rule", list(Dispatch))
def test_a_rule_keeps_to_the_replicas_that_a_bucket_may_go_to(
    rule: Dispatch, made_up: Make, traffic_of: MadeTraffic
) -> None:
    able = np.array([[True, True, False, False], [False, True, True, True]])
    traffic = traffic_of(seed=4, requests=400, rate_qps=20.0)
    traffic = replace(traffic, buckets=np.arange(400) % 2)
    done = simulate(traffic, [made_up() for _ in range(4)], Among(rule, able))
    used = np.array([[np.sum(done.replica[traffic.buckets == b] == r) for r in range(4)] for b in range(2)])
    assert ((used > 0) == able).all()
    if rule is Dispatch.ROUND_ROBIN:
        assert np.ptp(used.sum(axis=0)) <= 2  # each counts what it got of both buckets
    with pytest.raises(InputError, match="one able in each row"):
        Among(rule, np.zeros((1, 4), bool))
