import numpy as np
import pytest

from qplan.models.intervals.scale import ErrorScale
from qplan.models.intervals.scores import Calibration, noise


def test_scale_is_the_mean_error_where_difficulty_says_nothing() -> None:
    errors = np.random.default_rng(0).laplace(scale=0.2, size=500)
    scale = ErrorScale.fit(errors, np.zeros((500, 1)), np.ones(500))
    assert scale.at(np.zeros((1, 1)))[0] == pytest.approx(np.abs(errors).mean(), rel=1e-3)


def test_scale_follows_difficulty() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.uniform(0, 2, (2000, 1))
    scale = ErrorScale.fit(rng.laplace(scale=0.05 * np.exp(difficulty[:, 0])), difficulty, np.ones(2000))
    found = scale.at(np.array([[0.0], [2.0]]))
    assert found == pytest.approx([0.05, 0.05 * np.exp(2)], rel=0.15)


def test_more_difficult_is_never_surer() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.uniform(0, 2, (500, 2))
    scale = ErrorScale.fit(rng.laplace(scale=np.exp(-2 * difficulty[:, 0])), difficulty, np.ones(500))
    assert min(scale.slopes) >= 0


def test_perfect_predictions_have_a_scale() -> None:
    scale = ErrorScale.fit(np.zeros(5), np.ones((5, 1)), np.ones(5))
    assert 0 < scale.at(np.ones((1, 1)))[0] < 1e-3


def test_calibration_knows_what_lies_beyond_its_rows() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.uniform(0, 1, (40, 2))
    calibration = Calibration.of(rng.normal(size=40), difficulty, np.arange(40) % 4, None)
    assert calibration.beyond(np.array([[0.5, 0.5], [0.5, 1.5]])).tolist() == [False, True]


def test_noise_of_a_row_comes_from_the_other_rows() -> None:
    errors, own = np.array([5.0, 0.1, 0.1, 0.1, 0.1]), np.array([0, 0, 1, 1, 2])
    by_group, others = noise(errors, own, 3)
    assert by_group[0] > by_group[1]
    assert others[1] > others[0]  # the row beside the large error, not the one that made it
    assert others[4] == pytest.approx(0)  # alone in its group: the mean of all
