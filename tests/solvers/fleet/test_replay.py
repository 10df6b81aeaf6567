"""Demand through a planned fleet, replica by replica."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.models.iterations import IterationGrid
from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.simulation import simulate
from qplan.models.simulator.traffic import Traffic
from qplan.solvers.fleet.arrivals import Recorded
from qplan.solvers.fleet.replay import PlannedFleet, period_s, replay
from qplan.solvers.fleet.verify import verify

PREFILL_S = 1e-3  # of a prompt of 100 tokens, beside the 10 ms of any iteration


def replica(scale: float = 1.0) -> Replica:
    """Iterations of 10 ms + 1 ms per hundred prompt tokens + 0.1 ms per sequence."""
    tokens, batches, contexts = np.array([0.0, 1.0, 8192.0]), np.array([0.0, 1.0, 64.0]), np.array([1.0, 4096.0])
    time = 0.01 + PREFILL_S / 100 * tokens[:, None, None] + 1e-4 * batches[None, :, None] + 0 * contexts
    time[0, 0] = 0.0
    return Replica("one", IterationGrid(tokens, batches, contexts, scale * time), 100_000, 8192, Batching(8192, 64))


def fleet(**changes: Any) -> PlannedFleet:
    """One class of two buckets on two options over three periods."""
    fields: dict[str, Any] = {
        "classes": ("chat",),
        "slos": ((Slo("ttft", 0.1, 90.0), Slo("tpot", 0.05, 90.0)),),
        "bucket_class": np.array([0, 0]),
        "kind_bucket": np.array([0, 1]),
        "input_tokens": np.array([100, 800]),
        "output_tokens": np.array([20, 5]),
        "rate_qps": np.array([[20.0, 40.0, 10.0], [5.0, 10.0, 0.0]]),
        "options": ("fast", "slow"),
        "replicas": (replica(), replica(2.0)),
        "counts": np.array([[1, 3, 2], [0, 1, 1]]),
        "share": np.array([[[1.0, 0.8, 0.5], [0.0, 0.2, 0.5]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]),
        "available": np.ones(2),
    }
    both = {**fields, **changes}
    return PlannedFleet(**{"recorded": (None,) * len(both["classes"]), **both})


def test_a_replica_gets_its_part_of_the_demand() -> None:
    one = fleet()
    np.testing.assert_allclose(one.load_qps(0), [[20, 40 * 0.8 / 3, 2.5], [5, 10 / 3, 0]])
    np.testing.assert_allclose(one.load_qps(1), [[0, 8, 5], [0, 0, 0]])


def test_the_others_carry_the_load_of_spot_replicas_that_are_away() -> None:
    half = fleet(available=np.array([0.5, 1.0]))
    np.testing.assert_allclose(half.load_qps(0), 2 * fleet().load_qps(0))


def test_periods_are_long_enough_for_the_requests() -> None:
    one = fleet()
    totals = sum(run.requests.sum(axis=(0, 2)) for run in replay(one, requests=1000, seed=1))
    np.testing.assert_allclose(totals, [1000, 2000, 2000], rtol=0.1)  # the slow one is not up at first
    assert (period_s(one, 1000) > 0).all()


def test_a_rare_class_makes_periods_longer_and_a_period_without_demand_takes_no_time() -> None:
    both = fleet(
        classes=("chat", "rare"),
        slos=((), ()),
        bucket_class=np.array([0, 1]),
        rate_qps=np.array([[20.0, 0.0, 20.0], [20.0, 0.0, 0.5]]),
        counts=np.array([[1, 1, 1], [0, 0, 0]]),
        share=np.stack([np.ones((2, 3)), np.zeros((2, 3))], axis=1),
    )
    usual, without, longer = period_s(both, 1000)
    assert usual == pytest.approx(1000 / 40)
    assert without == 0
    assert longer == pytest.approx(5 * 1000 / 20.5)


def test_what_one_replica_sees_is_what_a_fleet_behind_random_dispatch_sees() -> None:
    slos = (Slo("ttft", 0.02, 90.0), Slo("e2e", 0.25, 90.0))
    one = fleet(
        slos=(slos,),
        rate_qps=np.array([[120.0], [30.0]]),
        counts=np.array([[3], [0]]),
        share=np.array([[[1.0], [0.0]], [[1.0], [0.0]]]),
    )
    random = np.random.default_rng(7)
    kinds = random.choice(2, 60_000, p=[0.8, 0.2])
    traffic = Traffic(np.cumsum(random.exponential(1 / 150, 60_000)), one.input_tokens[kinds], one.output_tokens[kinds])
    served = simulate(traffic, [replica()] * 3, Dispatch.RANDOM, 3)
    expected = [(served.ttft_s <= 0.02).mean(), (served.e2e_s <= 0.25).mean()]
    assert all(0.2 < share < 0.98 for share in expected)
    found = verify(one, requests=20_000, seed=5)
    for attainment, share in zip(found.attainments, expected, strict=True):
        assert attainment.share == pytest.approx(share, abs=0.02)


def test_the_same_seed_gives_the_same_requests_and_another_does_not() -> None:
    first, again, other = (replay(fleet(), requests=300, seed=seed) for seed in (1, 1, 2))
    assert all((a.requests == b.requests).all() for a, b in zip(first, again, strict=True))
    assert any((a.requests != b.requests).any() for a, b in zip(first, other, strict=True))


def test_a_subset_of_options_sees_what_it_sees_with_all() -> None:
    everything = replay(fleet(), requests=300, seed=1)
    one = replay(fleet(), requests=300, seed=1, among=[1])
    assert [run.option for run in one] == [1]
    expected = next(run for run in everything if run.option == 1)
    np.testing.assert_array_equal(one[0].requests, expected.requests)


def test_a_class_with_a_trace_is_replayed_from_it() -> None:
    """Sixteen at once every four seconds: the same rate as at random, and most wait for one another."""
    times = np.repeat(4.0 * np.arange(50), 16)
    trace = Recorded(times, 200.0, np.zeros(800, int), np.full(800, 100), np.full(800, 20), by_period=False)
    calm = fleet(
        slos=((Slo("ttft", 0.02, 90.0),),),
        rate_qps=np.array([[4.0], [0.0]]),
        counts=np.array([[1], [0]]),
        share=np.array([[[1.0], [0.0]], [[1.0], [0.0]]]),
    )
    bursty = replace(calm, recorded=(trace,))
    shares = [verify(one, requests=3000, seed=2).attainments[0] for one in (calm, bursty)]
    assert shares[0].share > 0.9
    assert shares[1].share < 0.5
    assert shares[1].requests == pytest.approx(3000, rel=0.1)


def test_a_fleet_that_leaves_requests_unserved_is_refused() -> None:
    with pytest.raises(InputError, match="leaves requests of chat without a replica"):
        fleet(share=0.5 * fleet().share)


@pytest.mark.parametrize(
    ("slo", "message"),
    [(Slo("itl", 0.1, 90.0), "keeps no single gaps"), (Slo("ttft", 0.1), "expected its percentile")],
)
def test_slos_that_cannot_be_judged_are_refused(slo: Slo, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fleet(slos=((slo,),))


def test_a_lower_load_only_scales_the_demand() -> None:
    light = replay(fleet().scaled(0.5, range(3)), requests=2000, seed=1)
    full = replay(fleet(), requests=2000, seed=1)
    assert sum(run.requests.sum() for run in light) == pytest.approx(sum(run.requests.sum() for run in full), rel=0.05)
    ttft = [
        sum(run.met[0][0].sum() for run in runs) / sum(run.requests.sum() for run in runs) for runs in (light, full)
    ]
    assert ttft[0] >= ttft[1]


def test_a_request_that_no_replica_holds_meets_nothing() -> None:
    tiny = replace(replica(), kv_tokens=200)
    found = verify(fleet(replicas=(tiny, tiny), slos=((Slo("e2e", 1e5, 50.0),),)), requests=300)
    assert found.attainments[0].share == pytest.approx(0.8, abs=0.06)  # one in five has 805 tokens
