"""Verdicts that may be asked at any time, and misses that come in bursts."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.measure.saturation.sequential import Verdict, decorrelation, verdict


@pytest.mark.parametrize("allowed", [0.1, 0.01])
def test_looking_after_every_request_keeps_the_error_below_the_one_allowed(allowed: float) -> None:
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        misses = np.cumsum(random.random(1_000) < allowed)
        wrong += any(verdict(float(misses[n - 1]), n, allowed, 0.9) is not Verdict.UNCLEAR for n in range(5, 1_001, 5))
    assert wrong <= 0.1 * 200


@pytest.mark.parametrize(("share", "expected"), [(0.02, Verdict.PASS), (0.3, Verdict.FAIL)])
def test_a_share_off_the_limit_is_soon_clear(share: float, expected: Verdict) -> None:
    assert verdict(share * 150, 150, 0.1, 0.95) is expected
    assert verdict(share * 10, 10, 0.1, 0.95) is Verdict.UNCLEAR


def test_nothing_seen_is_unclear() -> None:
    assert verdict(0, 0, 0.1, 0.95) is Verdict.UNCLEAR


def test_decorrelation_of_independent_values_is_about_one() -> None:
    values = np.random.default_rng(2).random((4, 5_000))
    apart, freedom = decorrelation(list(values), 1 / 12)
    assert 1 <= apart < 1.4
    assert freedom >= 10


@pytest.mark.parametrize("memory", [0.8, 0.95])
def test_decorrelation_of_an_autoregression_is_the_known_one(memory: float) -> None:
    random = np.random.default_rng(3)
    noise = random.standard_normal(200_000)
    values = np.empty_like(noise)
    values[0] = noise[0]
    for at in range(1, len(noise)):
        values[at] = memory * values[at - 1] + noise[at]
    apart, _ = decorrelation([values], 1 / (1 - memory**2))
    assert apart == pytest.approx((1 + memory) / (1 - memory), rel=0.2)


def test_too_few_values_for_batches_count_as_independent() -> None:
    assert decorrelation([np.ones(5)], 0.25)[0] == 1
