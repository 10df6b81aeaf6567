from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from qplan.models.waiting import Queue, Wait, normal_cdf


def test_the_normal_distribution_is_accurate_and_never_falls() -> None:
    z = np.linspace(-8, 8, 4001)
    np.testing.assert_allclose(normal_cdf(z, np.ones(1)), ndtr(z), atol=1.5e-7)
    assert (np.diff(normal_cdf(z, np.ones(1))) >= -1e-12).all()


@pytest.mark.parametrize(
    ("first", "second"), [((0.4, 20.0), (0.1, 5.0)), ((0.9, 3.0), (0.9, 3.0)), ((0.0, 10.0), (1.0, 2.0))]
)
def test_waits_match_samples(first: tuple[float, float], second: tuple[float, float]) -> None:
    wait = Wait(np.array([0.05]), np.array([0.8]), *(Queue(np.array([p]), np.array([r])) for p, r in (first, second)))
    rng = np.random.default_rng(1)
    n = 400_000
    samples = (rng.random(n) < 0.8) * rng.random(n) * 0.05
    for probability, rate in (first, second):
        samples += (rng.random(n) < probability) * rng.exponential(1 / rate, n)
    assert wait.mean()[0] == pytest.approx(samples.mean(), rel=0.01)
    assert wait.variance()[0] == pytest.approx(samples.var(), rel=0.02)
    for at in (-0.01, 0.0, 0.02, 0.05, 0.1, 0.5, 2.0):
        assert wait.cdf(np.array([[at]]))[0, 0] == pytest.approx((samples <= at).mean(), abs=0.003), at
