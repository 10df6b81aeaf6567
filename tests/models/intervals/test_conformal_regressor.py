from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyRegressor

from qplan.core.errors import InputError
from qplan.models.intervals.conformal import ConformalRegressor
from qplan.models.intervals.support import Verdict
from qplan.models.steptimes import Floats

Draw = Callable[..., tuple[Floats, Floats]]


@pytest.fixture
def fitted(power_law: Any, draw: Draw) -> Any:
    return ConformalRegressor(power_law, folds=5).fit(*draw(60, 6))


def test_both_questions_are_covered(fitted: Any, draw: Draw) -> None:
    loads, y_loads = draw(60, 20, seed=1)
    known = fitted.bounds(loads)
    assert known.known.all()
    assert 0.86 <= known.cover(y_loads).mean() <= 0.95
    new, y_new = draw(300, 4, first=1000, seed=2)
    unseen = fitted.bounds(new)
    assert not unseen.known.any()
    assert 0.85 <= unseen.cover(y_new).mean() <= 0.97
    # What is not known of a configuration is its level, of standard deviation 0.4; inside one only the noise of 0.05.
    assert np.median(unseen.log_width) > 3 * np.median(known.log_width)


def test_upper_bound_is_one_sided(fitted: Any, draw: Draw) -> None:
    X, y = draw(60, 20, seed=3)
    upper = fitted.upper_bound(X, 0.9)
    assert 0.86 <= (y <= upper).mean() <= 0.95
    assert np.median(upper) < np.median(fitted.bounds(X, 0.9).upper)


def test_wider_at_higher_coverage(fitted: Any, draw: Draw) -> None:
    X, _ = draw(60, 2, seed=4)
    narrow, wide = fitted.bounds(X, 0.5), fitted.bounds(X, 0.9)
    assert (narrow.lower > wide.lower).all()
    assert (narrow.upper < wide.upper).all()
    assert (narrow.value == wide.value).all()
    assert ((wide.lower < wide.value) & (wide.value < wide.upper)).all()


def test_each_question_has_its_regressor(draw: Draw, power_law: Any) -> None:
    X, y = draw(20, 5)
    fitted = ConformalRegressor(power_law, DummyRegressor(), folds=3).fit(X, y)
    assert fitted.predict(X[:3]) == pytest.approx(power_law.fit(X, y).predict(X[:3]))
    assert fitted.predict(X[:3] + np.array([0, 500, 0])) == pytest.approx([y.mean()] * 3)


def test_too_few_configurations_bound_nothing_for_a_new_one(power_law: Any, draw: Draw) -> None:
    fitted = ConformalRegressor(power_law).fit(*draw(4, 10))
    X, _ = draw(1, 1, first=99)
    bounds = fitted.bounds(X)
    assert (bounds.lower[0], bounds.upper[0], bounds.log_width[0]) == (0, np.inf, np.inf)
    assert np.isfinite(fitted.bounds(draw(4, 1, seed=1)[0]).upper).all()


def test_a_single_configuration_and_single_rows(power_law: Any, draw: Draw) -> None:
    X, y = draw(1, 12)
    one = ConformalRegressor(power_law).fit(X, y)
    assert one.unseen_calibrations_ == [None]
    assert np.isfinite(one.bounds(X).upper).all()
    unknown = one.bounds(X[:1] + np.array([0, 5, 0]))
    assert unknown.upper[0] == np.inf
    assert unknown.beyond.all()

    X, y = draw(12, 1)
    rows = ConformalRegressor(DummyRegressor()).fit(X, y)
    assert rows.known_calibration_ is None
    assert rows.bounds(X).upper[0] == np.inf


def test_far_loads_are_told(fitted: Any, draw: Draw) -> None:
    X, _ = draw(60, 1, seed=5)
    far = X * [1e4, 1, 1]
    assert fitted.bounds(far).beyond.all()
    assert fitted.bounds(X).beyond.mean() < 0.2


def test_own_doubt_of_the_regressor_is_used(draw: Draw, power_law: Any) -> None:
    class Doubting(type(power_law)):  # type: ignore[misc]
        """Knows which half of the feature is noisy."""

        def predict_std(self, X: Floats) -> Floats:
            return np.where(X[:, 2] > 0, 0.3, 0.03)

    X, y = draw(60, 10, noise=0.0)
    rng = np.random.default_rng(0)
    X[:, 2] = rng.choice([-1.0, 1.0], len(X))
    y *= np.exp(rng.normal(size=len(X)) * np.where(X[:, 2] > 0, 0.3, 0.03))
    bounds = ConformalRegressor(Doubting(), folds=5).fit(X, y).bounds(X)
    noisy = X[:, 2] > 0
    assert np.median(bounds.log_width[noisy]) > 3 * np.median(bounds.log_width[~noisy])


def test_an_answer_says_what_it_stands_on(fitted: Any, draw: Draw) -> None:
    X = np.array([[10.0, 3, 7], [10.0, 999, 7], [1e9, 3, 7]])
    bounds = fitted.bounds(X)
    known, new, far = (bounds.prediction(row, Verdict(("tp=8 was never measured",))) for row in range(3))
    assert (known.lower, known.value, known.upper) == (bounds.lower[0], bounds.value[0], bounds.upper[0])
    assert known.basis == "a configuration in the data; tp=8 was never measured"
    assert new.basis.startswith("a configuration never measured")
    assert "farther from the data" in far.basis
    assert (known.coverage, new.coverage, far.coverage) == (0.9, 0.9, None)
    with pytest.raises(InputError, match="no"):
        bounds.prediction(0, Verdict(refusals=("no",)))


def test_no_interval_has_no_coverage(power_law: Any, draw: Draw) -> None:
    bounds = ConformalRegressor(power_law).fit(*draw(4, 10)).bounds(np.array([[10.0, 99, 7]]))
    answer = bounds.prediction(0, Verdict())
    assert answer.coverage is None
    assert "no interval: too few cases" in answer.basis


def test_is_a_plain_estimator(fitted: Any, draw: Draw) -> None:
    again = clone(fitted).fit(*draw(60, 6))
    X, _ = draw(60, 1, seed=6)
    assert (again.bounds(X).upper == fitted.bounds(X).upper).all()
    assert fitted.score(*draw(60, 5, seed=7)) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, y[:-1]), "y is of shape"),
        (lambda X, y: (X, np.where(np.arange(len(y)) == 3, 0, y)), "y is 0 in row 3; expected a positive number"),
        (
            lambda X, y: (np.where(np.arange(len(X))[:, None] * 3 + np.arange(3) == 6, np.nan, X), y),
            "no finite value in row 2, column 0",
        ),
        (lambda X, y: (X[:, :1], y), "expected rows of more than 1 column"),
        (lambda X, y: (X[:0], y[:0]), "X is of shape"),
    ],
)
def test_bad_rows_are_told(change: Any, message: str, power_law: Any, draw: Draw) -> None:
    with pytest.raises(InputError, match=message):
        ConformalRegressor(power_law).fit(*change(*draw(5, 4)))


def test_bad_coverage_and_folds_are_told(fitted: Any, power_law: Any, draw: Draw) -> None:
    with pytest.raises(InputError, match="coverage 90; expected a share"):
        fitted.bounds(draw(2, 2)[0], 90)
    with pytest.raises(InputError, match="folds=1; expected 2 or more"):
        ConformalRegressor(power_law, folds=1).fit(*draw(5, 4))


def test_a_regressor_of_negative_numbers_is_told(draw: Draw) -> None:
    X, y = draw(20, 5)
    with pytest.raises(InputError, match="the regressor predicted -1; expected one that predicts positive numbers"):
        ConformalRegressor(DummyRegressor(strategy="constant", constant=-1.0)).fit(X, y)
