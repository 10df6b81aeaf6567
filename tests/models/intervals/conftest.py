"""Configurations with a power law each, and a regressor that finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin

from qplan.models.steptimes import Floats

Rows = tuple[Floats, Floats]


class PowerLaw(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """ln y = level of the configuration + slope ln load; the mean level where the configuration is unknown."""

    def fit(self, X: Floats, y: Floats) -> Self:
        log_load, self.codes_ = np.log(X[:, 0]), np.unique(X[:, 1])
        own = np.searchsorted(self.codes_, X[:, 1])
        count = np.bincount(own)

        def centred(values: Floats) -> Any:
            return values - (np.bincount(own, values) / count)[own]

        self.slope_ = float(centred(np.log(y)) @ centred(log_load) / (centred(log_load) ** 2).sum())
        self.levels_ = np.bincount(own, np.log(y) - self.slope_ * log_load) / count
        return self

    def predict(self, X: Floats) -> Floats:
        place = np.clip(np.searchsorted(self.codes_, X[:, 1]), 0, len(self.codes_) - 1)
        known = self.codes_[place] == X[:, 1]
        level = np.where(known, self.levels_[place], self.levels_.mean())
        return np.asarray(np.exp(level + self.slope_ * np.log(X[:, 0])))


@pytest.fixture
def power_law() -> Any:
    return PowerLaw()


@pytest.fixture
def draw() -> Callable[..., Rows]:
    """Return rows of configurations ``first, first + 1, ...``: load, code and a feature; and the target."""

    def make(configurations: int, loads: int, first: int = 0, seed: int = 0, noise: float = 0.05) -> Rows:
        rng = np.random.default_rng(seed)
        code = np.repeat(np.arange(first, first + configurations), loads)
        # A configuration's level depends on its code alone, so that draws of different seeds agree on it.
        level = 0.4 * np.array([np.random.default_rng(int(c)).normal() for c in code])
        load = np.exp(rng.uniform(0, np.log(128), len(code)))
        y = np.exp(level + 0.5 * np.log(load) + noise * rng.normal(size=len(code)))
        return np.column_stack([load, code, np.full(len(code), 7.0)]), y

    return make
