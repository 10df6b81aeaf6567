"""The contract of a load-level surrogate: one measured metric as a function of a configuration and its load.

A surrogate is a scikit-learn regressor: it passes ``clone``, ``get_params`` and cross-validation, and

- ``fit(X, y)`` takes X (N, F) and y (N,), the metric itself, positive; the logarithm is taken inside;
- ``predict(X)`` returns the metric at any load above 0, of configurations it has seen and of others;
- over the load column alone its prediction keeps the elasticity it was given, exactly, at every configuration.

Columns of X have roles that the constructor is told: `load` is the load itself (concurrency, batch size, rate, users);
`groups` are codes of nested groups, coarse to fine, the last of which is the configuration; every other
column is a physical feature. A code that `fit` never saw means a group that was not measured.

An implementation must pass :class:`qplan.models.load.conformance.LoadSurrogateConformance`. Subclasses of
:class:`LoadSurrogate` write ``_fit`` and ``_log_curves`` alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Self, cast

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from qplan.core.errors import InputError
from qplan.models.load.monotone import RISING, bounded, read
from qplan.models.steptimes import Floats, Ints

GRID_LOADS = 64  # measured loads that the grid holds exactly; more are thinned
GRID_STEP = 0.25  # largest gap between grid points in ln(load)
MARGIN = np.log(8.0)  # the grid reaches this far beyond the measured loads; past it the end slope is prolonged
CHUNK = 512  # curves made at a time


class LoadSurrogate(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the surrogates that ship: checks the input, takes logarithms, and bounds the elasticity.

    Parameters
    ----------
    load
        Column of X that holds the load.
    groups
        Columns of X that hold codes of groups, coarse to fine; the last is the configuration. Empty: none is known.
    elasticity
        Bounds of d ln y / d ln load, as in :mod:`qplan.models.load.monotone`.

    Attributes
    ----------
    features_ : (P,)
        Columns of the physical features that vary in the data; the others cannot be learned from.
    log_loads_ : (G,)
        Grid of ln(load) on which curves are held to the elasticity.
    n_features_in_
        F.
    """

    def __init__(self, load: int = 0, groups: tuple[int, ...] = (1,), elasticity: tuple[float, float] = RISING) -> None:
        self.load = load
        self.groups = groups
        self.elasticity = elasticity

    def fit(self, X: Floats, y: Floats) -> Self:
        """Fit to rows X (N, F) and the metric y (N,).

        Raises
        ------
        InputError
            A shape, a role or a value is not what the contract says.
        """
        X = np.asarray(X, dtype=float)
        if X.ndim != 2 or not len(X):
            raise InputError(f"X is of shape {X.shape}; expected (rows, columns), at least one row")
        y = np.asarray(y, dtype=float)
        if y.shape != (len(X),):
            raise InputError(f"y is of shape {y.shape}; X of {len(X)} rows expects ({len(X)},)")
        self._check_roles(X.shape[1])
        self.n_features_in_ = X.shape[1]
        self._check(X)
        if not (np.isfinite(y) & (y > 0)).all():
            raise InputError(f"row {int(np.flatnonzero(~(np.isfinite(y) & (y > 0)))[0])} of y is not positive")
        varies = np.ptp(X, axis=0) > 0
        varies[[self.load, *self.groups]] = False
        self.features_ = np.flatnonzero(varies)
        self.log_loads_ = _grid(np.log(X[:, self.load]))
        self._fit(X, np.log(y))
        return self

    def predict(self, X: Floats) -> Floats:
        """Return the metric, (N,), of rows X (N, F).

        Raises
        ------
        InputError
            The columns are not those of `fit`, or a value is missing or a load not positive.
        """
        check_is_fitted(self)
        X = np.asarray(X, dtype=float)
        self._check(X)
        rest = np.delete(X, self.load, axis=1)
        _, first, row = np.unique(rest, axis=0, return_index=True, return_inverse=True)
        curves = [self._bounded_curves(X[part]) for part in np.array_split(first, -(-len(first) // CHUNK) or 1)]
        result: Floats = np.exp(read(self.log_loads_, np.concatenate(curves), np.ravel(row), np.log(X[:, self.load])))
        return result

    def tuned(self, X: Floats, y: Floats) -> Self:  # noqa: ARG002  # there is nothing to learn here
        """Return one like this, not fitted, that has learned from rows X, y what changes little from row to row.

        It is for the many fits that show what leaving rows out costs.
        """
        return cast("Self", clone(self))

    def _fit(self, X: Floats, z: Floats) -> None:
        """Fit to rows X (N, F) and z = ln(y) (N,)."""
        raise NotImplementedError

    def _log_curves(self, X: Floats) -> tuple[Floats, Floats]:
        """Return ln(y) over the grid of loads and the trust in it, both (R, G), for rows X (R, F), load ignored."""
        raise NotImplementedError

    def _bounded_curves(self, X: Floats) -> Floats:
        curves, weight = self._log_curves(X)
        return bounded(self.log_loads_, curves, weight, self.elasticity)

    def _over_grid(self, X: Floats) -> Floats:
        """Return each row of X (R, F) at every load of the grid, (R * G, F)."""
        rows = np.repeat(X, len(self.log_loads_), axis=0)
        rows[:, self.load] = np.tile(np.exp(self.log_loads_), len(X))
        return rows

    def _check_roles(self, columns: int) -> None:
        roles = (self.load, *self.groups)
        if len(set(roles)) < len(roles) or not all(0 <= column < columns for column in roles):
            raise InputError(
                f"load={self.load} and groups={tuple(self.groups)} must be different columns of X, 0 to {columns - 1}"
            )
        lowest, greatest = self.elasticity
        if not lowest <= 0 <= greatest:
            raise InputError(f"elasticity={self.elasticity} must be two bounds with 0 between them")

    def _check(self, X: Floats) -> None:
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise InputError(f"X is of shape {X.shape}; expected {self.n_features_in_} columns, as in fit")
        if not np.isfinite(X).all():
            row, column = map(int, np.argwhere(~np.isfinite(X))[0])
            raise InputError(f"X has no finite value in row {row}, column {column}")
        if (X[:, self.load] <= 0).any():
            row = int(np.flatnonzero(X[:, self.load] <= 0)[0])
            raise InputError(f"the load in row {row} is {X[row, self.load]:g}; expected more than 0")

    def __sklearn_tags__(self) -> Any:
        """Say that the target must be positive, and that X is not just any matrix."""
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        tags.input_tags.positive_only = False
        return tags


def codes(column: Floats, known: Floats) -> Ints:
    """Return the position of each value of `column` in `known`, which is sorted; -1 where it is not there."""
    position = np.clip(np.searchsorted(known, column), 0, len(known) - 1)
    return np.where(known[position] == column, position, -1)


def _grid(log_loads: Floats) -> Floats:
    """Return grid points of ln(load): the measured ones, those that fill the gaps, and a margin on both sides."""
    measured = np.unique(log_loads)
    if len(measured) > GRID_LOADS:
        measured = measured[np.linspace(0, len(measured) - 1, GRID_LOADS).round().astype(int)]
    knots = np.concatenate([[measured[0] - MARGIN], measured, [measured[-1] + MARGIN]])
    pieces = [np.linspace(start, stop, int(np.ceil((stop - start) / GRID_STEP)) + 1) for start, stop in pairwise(knots)]
    return np.unique(np.concatenate(pieces))
