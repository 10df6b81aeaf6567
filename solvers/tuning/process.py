"""A Gaussian process over finitely many items with mixed features, fitted by maximum a posteriori.

The covariance of two items is::

    k(x, x') = a M(sqrt(sum_f (x_f - x'_f)^2 / l_f^2))  +  h(x) . h(x')

with M the Matern-5/2 correlation (Rasmussen and Williams: Gaussian Processes for Machine Learning, 2006, eq. 4.17), a
length l_f for each feature, the difference of categories 0 or 1, and h a few known functions with weights of unit
variance, such as an unknown offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

# Of logarithms: median and standard deviation of the prior of each hyperparameter, for outputs of unit variance.
_LENGTH = (np.log(1.5), 1.0)
_AMPLITUDE = (np.log(3.0), 1.0)
_NOISE = (np.log(2e-3), 1.2)
_BOUND = 4.0  # hyperparameters are held within this many standard deviations


@dataclass(frozen=True, slots=True)
class Features:
    """What tells items apart.

    Attributes
    ----------
    values
        (N, F): numbers in [0, 1], or codes of categories.
    categorical
        (F,): which are categories.
    """

    values: Floats
    categorical: NDArray[np.bool_]

    def apart(self, some: Ints, others: Ints) -> Floats:
        """Return the difference in each feature between items, (F, len(some), len(others))."""
        apart = np.abs(self.values[some].T[:, :, None] - self.values[others].T[:, None, :])
        apart[self.categorical] = apart[self.categorical] > 0
        return apart


@dataclass(frozen=True, slots=True)
class Scales:
    """How outputs become ones of mean 0 and variance 1, and the known functions; each row is an item's.

    Attributes
    ----------
    location, scale
        (N,): the process is that of ``(y - location) / scale``.
    basis
        (N, B): functions with unknown weights of unit variance.
    """

    location: Floats
    scale: Floats
    basis: Floats


@dataclass(frozen=True, slots=True)
class Process:
    """A process conditioned on the outputs, (n,), of the items `seen`, (n,), which may repeat.

    Attributes
    ----------
    theta
        Logarithms of the hyperparameters: lengths (F,), amplitude, noise.
    factor, weights
        Cholesky factor of the covariance of what is seen, (n, n), and its inverse times the scaled outputs, (n,).
    evidence
        Logarithm of the density of outputs and hyperparameters.
    """

    features: Features
    scales: Scales
    theta: Floats
    seen: Ints
    outputs: Floats
    factor: Floats
    weights: Floats
    evidence: float

    def mean_std(self, items: Ints) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the output of items, each (len(items),)."""
        cross = self._covariance(items, self.seen)
        variance = np.exp(self.theta[-2]) + (self.scales.basis[items] ** 2).sum(axis=1)
        if len(self.seen):
            variance = variance - (_solve(self.factor, cross.T) ** 2).sum(axis=0)
        scale = self.scales.scale[items]
        mean = self.scales.location[items] + scale * (cross @ self.weights)
        return mean, scale * np.sqrt(np.maximum(variance, np.exp(self.theta[-1])))  # no surer than outputs are exact

    def covariance(self, some: Ints, others: Ints) -> Floats:
        """Return the covariance of scaled outputs of items, (len(some), len(others))."""
        covariance = self._covariance(some, others)
        if len(self.seen):
            halves = [_solve(self.factor, self._covariance(self.seen, items)) for items in (some, others)]
            covariance -= halves[0].T @ halves[1]
        return covariance

    def draw(self, items: Ints, count: int, rng: np.random.Generator) -> Floats:
        """Draw outputs of items together, (count, len(items))."""
        covariance = self.covariance(items, items)
        covariance[np.diag_indices_from(covariance)] += np.exp(self.theta[-1])
        root = np.linalg.cholesky(covariance)
        mean, _ = self.mean_std(items)
        drawn: Floats = mean + self.scales.scale[items] * (rng.standard_normal((count, len(items))) @ root.T)
        return drawn

    def given(self, items: Ints, outputs: Floats) -> Process:
        """Return the process conditioned on further outputs, with its hyperparameters."""
        seen, all_outputs = np.append(self.seen, items), np.append(self.outputs, outputs)
        return _condition(self.features, self.scales, self.theta, seen, all_outputs, self.evidence)

    def _covariance(self, some: Ints, others: Ints) -> Floats:
        apart = self.features.apart(some, others)
        covariance = np.exp(self.theta[-2]) * _matern(_scaled(apart.reshape(len(apart), -1), self.theta))
        known = self.scales.basis[some] @ self.scales.basis[others].T
        total: Floats = covariance.reshape(len(some), len(others)) + known
        return total


def fit(
    features: Features,
    scales: Scales,
    seen: Ints,
    outputs: Floats,
    start: Floats | None = None,
    *,
    steps: int = 40,
) -> Process:
    """Fit a process to the outputs, (n,), of the items `seen`, (n,), which may repeat.

    Parameters
    ----------
    start
        Hyperparameters of an earlier fit, from which to go on; ``None``: from the prior's median.
    steps
        Most steps of the search for hyperparameters; 0: those at the start.
    """
    center, width = _prior(features.values.shape[1])
    if not len(seen):
        return _condition(features, scales, center, seen, outputs, 0.0)
    from scipy.optimize import minimize

    pairs = _pairs(features, seen)
    known = scales.basis[seen] @ scales.basis[seen].T
    z = (outputs - scales.location[seen]) / scales.scale[seen]

    def loss(theta: Floats) -> tuple[float, Floats]:
        value, gradient = _likelihood(theta, pairs, known, z)
        off = (theta - center) / width
        return float(off @ off / 2) - value, off / width - gradient

    theta = center if start is None else start
    least = loss(theta)[0]
    if steps:
        bounds = list(zip(center - _BOUND * width, center + _BOUND * width, strict=True))
        found = minimize(loss, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps})
        theta, least = found.x, float(found.fun)
    evidence = -least - float(np.log(scales.scale[seen]).sum())
    return _condition(features, scales, theta, seen, outputs, evidence)


def _condition(
    features: Features, scales: Scales, theta: Floats, seen: Ints, outputs: Floats, evidence: float
) -> Process:
    known = scales.basis[seen] @ scales.basis[seen].T
    factor = np.linalg.cholesky(_with_noise(_pairs(features, seen), known, theta)).astype(float)
    z = (outputs - scales.location[seen]) / scales.scale[seen]
    weights = _solve(factor.T, _solve(factor, z), lower=False) if len(seen) else z
    return Process(features, scales, theta, seen, outputs, factor, weights, evidence)


def _pairs(features: Features, seen: Ints) -> Floats:
    """Return the differences of the pairs below the diagonal, (F, n(n - 1)/2)."""
    pairs: Floats = features.apart(seen, seen)[:, *np.tril_indices(len(seen), -1)]
    return pairs


def _prior(features: int) -> tuple[Floats, Floats]:
    """Return median and standard deviation of each logarithmic hyperparameter."""
    center, width = np.array([_LENGTH] * features + [_AMPLITUDE, _NOISE]).T
    return center, width


def _scaled(apart: Floats, theta: Floats) -> Floats:
    """Return ``sqrt(5)`` times the distance of pairs, (P,), from their differences, (F, P)."""
    scaled: Floats = np.sqrt(5 * np.exp(-2 * theta[:-2]) @ apart**2)
    return scaled


def _matern(scaled: Floats) -> Floats:
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def _with_noise(pairs: Floats, known: Floats, theta: Floats) -> Floats:
    """Return the covariance of what is seen; its lower triangle, which is all that is read."""
    amplitude, noise = np.exp(theta[-2:])
    K = known.copy()
    K[np.tril_indices(len(K), -1)] += amplitude * _matern(_scaled(pairs, theta))
    K[np.diag_indices_from(K)] += amplitude + noise
    return K


def _likelihood(theta: Floats, pairs: Floats, known: Floats, z: Floats) -> tuple[float, Floats]:
    """Return the log marginal likelihood of outputs and its gradient (Rasmussen and Williams, eq. 5.8 and 5.9).

    `pairs`, (F, n(n - 1)/2), are the differences of the items below the diagonal, which are half of the work.
    """
    from scipy.linalg import lapack

    n = len(z)
    below = np.tril_indices(n, -1)
    factor, failed = lapack.dpotrf(_with_noise(pairs, known, theta), lower=1)
    if failed:
        return -np.inf, np.zeros_like(theta)
    inverse, _ = lapack.dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse @ z
    value = -z @ weights / 2 - np.log(np.diag(factor)).sum() - n / 2 * np.log(2 * np.pi)
    amplitude, noise = np.exp(theta[-2:])
    W = weights[below[0]] * weights[below[1]] - inverse[below]
    trace = (weights @ weights - np.trace(inverse)) / 2
    scaled = _scaled(pairs, theta)
    slope = amplitude * W * (1 + scaled) / 3 * np.exp(-scaled)
    by_length = 5 * np.exp(-2 * theta[:-2]) * (pairs**2 @ slope)
    by_amplitude = amplitude * (_matern(scaled) @ W + trace)
    return float(value), np.concatenate([by_length, [by_amplitude, noise * trace]])


def _solve(factor: Floats, right: Floats, *, lower: bool = True) -> Floats:
    from scipy.linalg import solve_triangular

    solution: Floats = solve_triangular(factor, right, lower=lower, check_finite=False)
    return solution
