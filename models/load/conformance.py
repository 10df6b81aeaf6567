"""What every load-level surrogate owes, as tests that anyone's surrogate can run.

Subclass :class:`LoadSurrogateConformance`, say how yours is made, and let pytest collect it::

    class TestMine(LoadSurrogateConformance):
        def make(self, load, groups, elasticity):
            return MySurrogate(load, groups, elasticity)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone

from qplan.core.errors import InputError
from qplan.models.load.monotone import AMORTISED, RISING, SATURATING
from qplan.models.steptimes import Floats

BOUNDS = (RISING, AMORTISED, SATURATING)
LOADS = np.geomspace(0.5, 4096, 120)
MODELS, GPUS = 6, 2


class LoadSurrogateConformance:
    """Tests of a surrogate on made-up latencies of six models on two GPUs at eight loads."""

    def make(self, load: int, groups: tuple[int, ...], elasticity: tuple[float, float]) -> Any:
        """Return the surrogate under test, not yet fitted."""
        raise NotImplementedError

    def data(self, elasticity: tuple[float, float] = RISING) -> tuple[Floats, Floats]:
        """Return X (N, 5), its columns model code, ln(size), load, configuration code and ln(speed), and y (N,).

        The metric follows the elasticity up to noise of 3 %, which breaks it here and there.
        """
        draw = np.random.default_rng(7)
        model, gpu, load = (
            axis.ravel() for axis in np.meshgrid(np.arange(MODELS), np.arange(GPUS), 2.0 ** np.arange(8), indexing="ij")
        )
        size, speed = np.log(3.0 + 4.0 * model), np.log(1.0 + 1.5 * gpu)
        latency = np.exp(size - speed) * (10 + load / 4)
        y = {RISING: latency, AMORTISED: latency / load, SATURATING: load / latency}[elasticity]
        X = np.column_stack([model, size, load, model * GPUS + gpu, speed])
        return X, y * np.exp(0.03 * draw.standard_normal(len(y)))

    def _fitted(self, elasticity: tuple[float, float] = RISING) -> tuple[Any, Floats, Floats]:
        X, y = self.data(elasticity)
        return self.make(2, (0, 3), elasticity).fit(X, y), X, y

    def test_is_a_scikit_learn_regressor(self) -> None:
        """A clone has the same parameters, is not fitted, and predicts the same once it is."""
        fitted, X, y = self._fitted()
        fresh = clone(fitted)
        assert {name: repr(value) for name, value in fresh.get_params().items()} == {
            name: repr(value) for name, value in fitted.get_params().items()
        }
        assert not hasattr(fresh, "n_features_in_")
        np.testing.assert_allclose(fresh.fit(X, y).predict(X), fitted.predict(X), rtol=1e-6)
        assert fitted.score(X, y) > 0.8

    def test_elasticity_is_kept_at_every_load(self) -> None:
        """Inside, between and beyond the measured loads, of configurations seen and not seen."""
        for elasticity in BOUNDS:
            fitted, X, _ = self._fitted(elasticity)
            new = np.array([[99.0, np.log(70.0), 1.0, 99.0, 0.4]])
            ones = np.concatenate([X[::24], new])
            rows = np.repeat(ones, len(LOADS), axis=0)
            rows[:, 2] = np.tile(LOADS, len(ones))
            curves = np.log(fitted.predict(rows)).reshape(len(ones), -1)
            slopes = np.diff(curves, axis=1) / np.diff(np.log(LOADS))
            assert slopes.min() >= elasticity[0] - 1e-6, elasticity
            assert slopes.max() <= elasticity[1] + 1e-6, elasticity

    def test_predictions_are_positive_and_finite(self) -> None:
        """Even far from the data."""
        fitted, X, _ = self._fitted()
        far = X.copy()
        far[:, 1] += 3.0
        far[:, 2] *= 1e4
        far[:, [0, 3]] = 1000
        predicted = fitted.predict(far)
        assert predicted.shape == (len(far),)
        assert np.isfinite(predicted).all()
        assert (predicted > 0).all()

    def test_a_prediction_does_not_depend_on_the_others_asked_for(self) -> None:
        """Row by row, in any order, or all together."""
        fitted, X, _ = self._fitted()
        together = fitted.predict(X)
        np.testing.assert_allclose(fitted.predict(X[::-1])[::-1], together, rtol=1e-9)
        np.testing.assert_allclose([fitted.predict(row[None])[0] for row in X[:4]], together[:4], rtol=1e-9)

    def test_the_unit_of_the_metric_does_not_matter(self) -> None:
        """Milliseconds give a thousand times what seconds give."""
        X, y = self.data()
        seconds = self.make(2, (0, 3), RISING).fit(X, y).predict(X)
        np.testing.assert_allclose(self.make(2, (0, 3), RISING).fit(X, 1e3 * y).predict(X), 1e3 * seconds, rtol=0.02)

    def test_follows_what_it_was_shown(self) -> None:
        """A load left out of each configuration is predicted better than by the mean of the metric."""
        X, y = self.data()
        held = X[:, 2] == 16
        fitted = self.make(2, (0, 3), RISING).fit(X[~held], y[~held])
        error = np.abs(np.log(fitted.predict(X[held]) / y[held])).mean()
        spread = np.abs(np.log(y[held]) - np.log(y).mean()).mean()
        assert error < 0.4 * spread

    def test_works_without_groups(self) -> None:
        """No column need be a code."""
        X, y = self.data()
        X = X[:, [1, 2, 4]]
        fitted = self.make(1, (), RISING).fit(X, y)
        assert np.isfinite(fitted.predict(X)).all()

    def test_bad_input_is_refused_in_one_line(self) -> None:
        """Missing values, loads and targets that are not positive, other columns, roles that are not there."""
        X, y = self.data()
        missing, no_load, negative = X.copy(), X.copy(), y.copy()
        missing[3, 1], no_load[3, 2], negative[3] = np.nan, 0.0, -1.0
        fitted = self.make(2, (0, 3), RISING).fit(X, y)
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: fitted.predict(missing),
            lambda: fitted.predict(no_load),
            lambda: fitted.predict(X[:, :3]),
            lambda: self.make(2, (0, 3), RISING).fit(missing, y),
            lambda: self.make(2, (0, 3), RISING).fit(X, negative),
            lambda: self.make(2, (0, 3), RISING).fit(X, y[:-1]),
            lambda: self.make(9, (0, 3), RISING).fit(X, y),
            lambda: self.make(2, (2,), RISING).fit(X, y),
        )
        for attempt in attempts:
            message = ""
            try:
                attempt()
            except InputError as error:
                message = str(error)
            assert message
            assert "\n" not in message
