import numpy as np
import pytest

from qplan.models.load.monotone import AMORTISED, FREE, RISING, SATURATING, bounded, read
from qplan.models.steptimes import Floats

S = np.linspace(0, 4, 30)


def wild(seed: int = 0) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    return np.cumsum(draw.normal(0, 0.3, (5, len(S))), axis=1), draw.uniform(0.1, 2, (5, len(S)))


@pytest.mark.parametrize("elasticity", [RISING, SATURATING, AMORTISED, (-np.inf, 0.0)])
def test_slopes_keep_within_their_bounds(elasticity: tuple[float, float]) -> None:
    curves, weight = wild()
    slopes = np.diff(bounded(S, curves, weight, elasticity), axis=1) / np.diff(S)
    assert slopes.min() >= elasticity[0] - 1e-9
    assert slopes.max() <= elasticity[1] + 1e-9


@pytest.mark.parametrize("elasticity", [SATURATING, AMORTISED])
def test_a_curve_is_moved_little_further_than_it_must(elasticity: tuple[float, float]) -> None:
    curves, weight = wild(1)
    lowest, greatest = elasticity
    span = np.diff(S)
    # The nearest curve by brute force: non-negative least squares over the steps above the lowest slope.
    from scipy.optimize import lsq_linear

    steps = np.tril(np.ones((len(S), len(S))))
    for row in range(2):
        root = np.sqrt(weight[row])
        best = lsq_linear(
            root[:, None] * steps,
            root * curves[row],
            (np.r_[-np.inf, lowest * span], np.r_[np.inf, greatest * span]),
        )
        found = bounded(S, curves[[row]], weight[[row]], elasticity)[0]
        assert (weight[row] * (found - curves[row]) ** 2).sum() <= 1.1 * 2 * best.cost + 1e-9


def test_a_curve_within_its_bounds_is_left_alone() -> None:
    curve = np.log(1 + np.exp(S))[None] * 0.9
    np.testing.assert_array_equal(bounded(S, curve, np.ones_like(curve), RISING), curve)
    np.testing.assert_allclose(bounded(S, curve, np.ones_like(curve), SATURATING), curve)
    curves, weight = wild()
    np.testing.assert_array_equal(bounded(S, curves, weight, FREE), curves)


def test_what_is_trusted_more_moves_less() -> None:
    curve = np.array([[0.0, 1.0, 0.0]])
    found = bounded(np.arange(3.0), curve, np.array([[1.0, 1.0, 1e-6]]), RISING)
    np.testing.assert_allclose(found, [[0, 1, 1]], atol=1e-5)


def test_reading_prolongs_the_ends() -> None:
    points = np.array([[0.0, 1.0, 3.0], [1.0, 1.0, 1.0]])
    at = np.array([-1.0, 0.5, 2.0, 5.0, 9.0])
    row = np.array([0.0, 0, 0, 0, 1])
    np.testing.assert_allclose(read(np.array([0.0, 1, 2]), points, row, at), [-1, 0.5, 3, 9, 1])
