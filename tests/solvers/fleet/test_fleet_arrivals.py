"""What a replica is sent of a trace, and of random arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.solvers.fleet.arrivals import Recorded, Sent, at_random

LENGTH_S = 100.0


def recorded(*, by_period: bool = False) -> Recorded:
    """Two hundred requests in 100 s, most of them in bursts in the first half; the buckets take turns."""
    random = np.random.default_rng(1)
    bursts = np.concatenate([10 * n + random.random(32) for n in range(5)])
    times = np.sort(np.concatenate([bursts, 50 + 50 * random.random(40)]))
    number = np.arange(200)
    return Recorded(times, LENGTH_S, number % 2, number + 1, np.ones(200, np.int64), by_period)


def burstiness(sent: Sent, seconds: float) -> float:
    """Variance over mean of the requests in each second: 1 of random arrivals."""
    counts = np.histogram(sent.times_s, bins=int(seconds), range=(0, seconds))[0]
    return float(counts.var() / counts.mean())


def test_at_its_own_rate_a_replica_that_gets_all_sees_the_trace_itself() -> None:
    one = recorded()
    sent = one.sent(3, 2.0, np.ones(2), LENGTH_S, np.random.default_rng(5))
    assert sorted(sent.input_tokens.tolist()) == list(range(1, 201))
    assert (sent.classes == 3).all()
    begin = int(np.argmin(sent.input_tokens))  # it comes round: the first request follows the last
    in_order = np.roll(sent.input_tokens, -begin)
    np.testing.assert_array_equal(in_order, np.arange(1, 201))
    gaps = np.diff(sent.times_s)[begin : begin + 50]
    np.testing.assert_allclose(gaps, np.diff(one.times_s)[: len(gaps)], atol=1e-9)


@pytest.mark.parametrize(
    ("rate_qps", "part"), [(2.0, [0.5, 0.1]), (1.3, [1.0, 1.0]), (37.0, [0.2, 0.4]), (2.0, [1.5, 1.0])]
)
def test_buckets_come_at_their_rates(rate_qps: float, part: list[float]) -> None:
    sent = recorded().sent(0, rate_qps, np.array(part), 20_000.0, np.random.default_rng(2))
    buckets = (sent.input_tokens - 1) % 2
    rates = np.bincount(buckets, minlength=2) / 20_000.0
    np.testing.assert_allclose(rates, rate_qps / 2 * np.array(part), rtol=0.05)
    assert (np.diff(sent.times_s) >= 0).all()
    assert sent.times_s.max() < 20_000.0


def test_bursts_keep_their_size_and_even_out_in_many_copies() -> None:
    random = np.random.default_rng(3)
    own, many = (recorded().sent(0, rate, np.ones(2), 5_000.0, random) for rate in (2.0, 200.0))
    assert burstiness(own, 5_000) > 10
    relative = [burstiness(sent, 5_000) / len(sent.times_s) for sent in (own, many)]  # squared variation, but for time
    assert relative[1] < relative[0] / 30


def test_periods_are_parts_of_a_trace_that_spans_them() -> None:
    halves = [recorded(by_period=True).during(h, 2) for h in range(2)]
    assert [len(half) for half in halves] == [160, 40]
    assert all(half.length_s == 50 and 0 <= half.times_s.min() <= half.times_s.max() < 50 for half in halves)
    whole = recorded()
    assert whole.during(1, 2) is whole
    late = halves[1].sent(0, 0.8, np.ones(2), 50.0, np.random.default_rng(4))
    assert set(late.input_tokens.tolist()) == set(range(161, 201))


def test_random_arrivals_are_of_their_kinds_and_streams_are_merged_in_order() -> None:
    random = np.random.default_rng(6)
    kinds = np.array([0, 1]), np.array([10, 20]), np.array([1, 2])
    sent = at_random(np.array([3.0, 1.0]), *kinds, 5_000.0, random)
    assert np.mean(sent.classes == 0) == pytest.approx(0.75, abs=0.02)
    assert burstiness(sent, 5_000) == pytest.approx(1.0, abs=0.15)
    assert set(zip(sent.classes.tolist(), sent.input_tokens.tolist(), strict=True)) == {(0, 10), (1, 20)}
    none = at_random(np.zeros(2), *kinds, 5_000.0, random)
    assert not len(none.times_s)
    both = Sent.merged([sent, none, recorded().sent(2, 2.0, np.ones(2), 5_000.0, random)])
    assert (np.diff(both.times_s) >= 0).all()
    assert set(both.classes.tolist()) == {0, 1, 2}
