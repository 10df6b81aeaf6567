"""Arrival processes are what they say, at every rate and over any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qplan.core.errors import InputError
from qplan.measure.load.arrivals import Arrivals
from qplan.measure.load.requests import Floats


def fano(times_s: Floats, bin_s: float) -> float:
    """Variance over mean of the counts in bins: 1 for a Poisson process."""
    counts = np.bincount((times_s / bin_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())


@pytest.mark.parametrize("text", ["poisson", "constant", "gamma:cv=2", "ramp:to=2x", "ramp:to=0.5x"])
def test_text_reads_back_and_rate_is_kept(text: str) -> None:
    arrivals = Arrivals.parse(text)
    assert str(arrivals) == text
    times = arrivals.schedule(50, duration_s=400, seed=1)
    mean = 50 * (1 + arrivals.parameter) / 2 if arrivals.kind == "ramp" else 50
    assert len(times) == pytest.approx(400 * mean, rel=0.06)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poison", "did you mean 'poisson'"),
        ("gamma", "expected gamma:cv=2"),
        ("gamma:to=2", "expected gamma:cv=2"),
        ("gamma:cv=-1", "expected more than 0"),
        ("ramp:to=fast", "not a number"),
        ("poisson:cv=1", "expected poisson"),
        ("", "unknown arrivals"),
    ],
)
def test_bad_text_is_one_clear_line(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Arrivals.parse(text)


def test_poisson_passes_a_ks_test_whole_and_its_slices_merged() -> None:
    times = Arrivals().schedule(100, count=20_000, seed=3)
    assert stats.kstest(np.diff(times), "expon", args=(0, 1 / 100)).pvalue > 0.01
    merged = np.sort(np.concatenate([times[shard::4] for shard in range(4)]))
    assert (merged == times).all()
    assert fano(times, 0.2) == pytest.approx(1, abs=0.1)


def test_gamma_has_the_burstiness_asked_for() -> None:
    gaps = np.diff(Arrivals.parse("gamma:cv=2").schedule(10, count=50_000, seed=0))
    assert gaps.std() / gaps.mean() == pytest.approx(2, rel=0.05)
    assert np.diff(Arrivals.parse("constant").schedule(4, count=9)).tolist() == [0.25] * 8


def test_a_ramp_is_poisson_in_its_own_time() -> None:
    times = Arrivals.parse("ramp:to=3x").schedule(100, duration_s=60, seed=5)
    intensity = 100 * (times + (3 - 1) * times**2 / (2 * 60))
    assert stats.kstest(np.diff(intensity), "expon").pvalue > 0.01
    assert np.sum(times > 59) / np.sum(times < 1) == pytest.approx(3, rel=0.4)
    assert len(Arrivals.parse("ramp:to=3x").schedule(100, count=500)) == 500


@pytest.mark.parametrize("text", ["poisson", "constant", "gamma:cv=0.5"])
def test_same_seed_same_pattern_at_every_rate_and_length(text: str) -> None:
    arrivals = Arrivals.parse(text)
    slow, fast = arrivals.schedule(1, count=5000, seed=7), arrivals.schedule(8, count=5000, seed=7)
    np.testing.assert_allclose(fast * 8, slow, atol=1e-9)
    timed = arrivals.schedule(8, duration_s=float(fast[4500]), seed=7)
    np.testing.assert_array_equal(timed, fast[: len(timed)])
    assert len(timed) in (4500, 4501)
    if text != "constant":
        assert not np.array_equal(arrivals.schedule(1, count=5000, seed=8), slow)


def test_a_schedule_needs_a_rate_and_one_end() -> None:
    for rate, duration, count in [(0.0, 1.0, None), (1.0, None, None), (1.0, 1.0, 1), (1.0, -1.0, None)]:
        with pytest.raises(InputError):
            Arrivals().schedule(rate, duration_s=duration, count=count)
