"""Parametric curves, one for each configuration, whose shapes are shrunk to what all of them have in common.

The curve of a configuration is ::

    ln y = b0 + b1 ln L + sum over k of b_k ln(1 + L / K_k)

a product of power laws with knees at loads K_k: memory-bound below a knee, compute-bound above it, queueing above the
next. Far from the data it is a power law. The coefficients are a linear function of the physical features plus the
configuration's own deviation, which is drawn from one distribution for all: a linear mixed model (Laird & Ware 1982).
Its covariances are found by expectation maximisation, so how far a configuration with few points is pulled to the
others follows from how much configurations differ.
"""

from __future__ import annotations

import numpy as np
from sklearn.utils.validation import check_is_fitted

from qplan.models.load.contract import LoadSurrogate, codes
from qplan.models.load.monotone import RISING
from qplan.models.steptimes import Floats

KNEES = (1 / 3, 2 / 3)  # where the knees lie in the range of ln(load)
ROUNDS = 40  # of expectation maximisation
START_SD = np.array([0.2, 0.15, 0.15, 0.15])  # of own deviations, before anything is known
BELIEF = 6.0  # configurations that this start is worth
LEVEL_SD, TREND_SD = 5.0, 0.3  # of common coefficients, and of what a standardised feature adds to them
START_NOISE = 0.05
LEAST_NOISE = 1e-3


class PooledCurves(LoadSurrogate):
    """Power laws with knees, partially pooled over configurations; see the module.

    Parameters are those of :class:`~qplan.models.load.contract.LoadSurrogate`.

    Attributes
    ----------
    common_ : (1 + P, K)
        Coefficients of the mean curve, and what each standardised feature adds to them.
    spread_ : (K, K)
        Covariance of own deviations.
    noise_
        Standard deviation of ln(y) of a run around its curve.
    own_ : (C, K), own_spread_ : (C, K, K)
        Deviation of each configuration in `configurations_`, and its covariance.
    """

    def __init__(self, load: int = 0, groups: tuple[int, ...] = (1,), elasticity: tuple[float, float] = RISING) -> None:
        super().__init__(load, groups, elasticity)

    def predict_std(self, X: Floats) -> Floats:
        """Return the standard deviation of ln(y), (N,), of a single run at rows X (N, F); common part as known."""
        check_is_fitted(self)
        X = np.asarray(X, dtype=float)
        self._check(X)
        basis = self._basis(np.log(X[:, self.load]))
        variance: Floats = np.einsum("nk,nkl,nl->n", basis, self._own(X)[1], basis) + self.noise_**2
        return np.sqrt(variance)

    def _fit(self, X: Floats, z: Floats) -> None:
        features = X[:, self.features_]
        self.centre_, self.scale_ = features.mean(axis=0), features.std(axis=0)
        low, high = np.log(X[:, self.load]).min(), np.log(X[:, self.load]).max()
        self.middle_, self.knees_ = (low + high) / 2, low + (high - low) * np.array(KNEES)
        basis = self._basis(np.log(X[:, self.load]))
        size = basis.shape[1]
        design = (self._levels(X)[:, :, None] * basis[:, None, :]).reshape(len(z), -1)
        members = self._members(X)
        self.configurations_ = np.unique(members)
        rows = [np.flatnonzero(members == member) for member in self.configurations_]

        prior = np.full((1 + len(self.features_), size), TREND_SD)
        prior[0] = LEVEL_SD
        spread, noise = np.diag(START_SD**2), START_NOISE
        for _ in range(ROUNDS):
            inverses = [np.linalg.inv(basis[at] @ spread @ basis[at].T + noise**2 * np.eye(len(at))) for at in rows]
            precision = np.diag(prior.ravel() ** -2.0)
            pull = np.zeros(design.shape[1])
            for at, inverse in zip(rows, inverses, strict=True):
                precision += design[at].T @ inverse @ design[at]
                pull += design[at].T @ inverse @ z[at]
            common = np.linalg.solve(precision, pull)
            left = z - design @ common
            gains = [spread @ basis[at].T @ inverse for at, inverse in zip(rows, inverses, strict=True)]
            own = np.array([gain @ left[at] for gain, at in zip(gains, rows, strict=True)])
            own_spread = np.array([spread - gain @ basis[at] @ spread for gain, at in zip(gains, rows, strict=True)])
            squares = sum(
                ((left[at] - basis[at] @ deviation) ** 2).sum() + np.trace(basis[at] @ doubt @ basis[at].T)
                for at, deviation, doubt in zip(rows, own, own_spread, strict=True)
            )
            spread = (own.T @ own + own_spread.sum(axis=0) + BELIEF * np.diag(START_SD**2)) / (len(rows) + BELIEF)
            noise = max(float(np.sqrt(squares / len(z))), LEAST_NOISE)
        self.common_ = common.reshape(prior.shape)
        self.spread_, self.noise_, self.own_, self.own_spread_ = spread, noise, own, own_spread

    def _log_curves(self, X: Floats) -> tuple[Floats, Floats]:
        basis = self._basis(self.log_loads_)
        own, doubt = self._own(X)
        curves = (self._levels(X) @ self.common_ + own) @ basis.T
        return curves, 1 / (np.einsum("gk,rkl,gl->rg", basis, doubt, basis) + self.noise_**2)

    def _basis(self, log_load: Floats) -> Floats:
        """Return the terms of the curve at ln(load), (N, K)."""
        knees = np.logaddexp(0, log_load[:, None] - self.knees_)
        return np.column_stack([np.ones_like(log_load), log_load - self.middle_, knees])

    def _levels(self, X: Floats) -> Floats:
        """Return 1 and the standardised features, (N, 1 + P)."""
        return np.column_stack([np.ones(len(X)), (X[:, self.features_] - self.centre_) / self.scale_])

    def _members(self, X: Floats) -> Floats:
        """Return the code of each row's configuration; all the same where there are no groups."""
        return X[:, self.groups[-1]] if self.groups else np.zeros(len(X))

    def _own(self, X: Floats) -> tuple[Floats, Floats]:
        """Return each row's own deviation, (N, K), and its covariance, (N, K, K); none where not measured."""
        position = codes(self._members(X), self.configurations_)
        seen = position >= 0
        own = np.where(seen[:, None], self.own_[position], 0.0)
        return own, np.where(seen[:, None, None], self.own_spread_[position], self.spread_)
