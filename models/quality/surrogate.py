"""Divergence and benchmark losses of any quantized model: the effects fitted to figures, with their covariance.

The effects (:mod:`qplan.models.quality.effects`) have Gaussian beliefs; figures have Gaussian errors, of divergences in
the logarithm. The most probable effects are found by Gauss-Newton steps, each a Bayesian linear regression in closed
form, and the last one's covariance is Laplace's approximation of the posterior (Bishop, Pattern Recognition and Machine
Learning, sections 3.3 and 4.4). What no figure has told of, a new model, method or scheme, enters an answer with its
belief, so an answer far from figures is wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from qplan.core.quantization import Quantization
from qplan.models.quality.effects import Spread, Terms, belief, parts, sensitivity
from qplan.models.quality.evidence import DIVERGENCE, Evidence

Floats = NDArray[np.float64]
_STEPS, _TOLERANCE = 50, 0.03
_LARGEST_STEP = 1.0  # of an effect, which is a logarithm


@dataclass(frozen=True, slots=True)
class LogLoss:
    """Gaussian belief about the logarithm of a loss: mean and standard deviation of ln(nats) or ln(-ln retention)."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Effects as figures have left them.

    Attributes
    ----------
    index
        Places of the E effects that some figure bears on, by name.
    effects, covariance
        Posterior mean (E,) and covariance (E, E).
    log_evidence
        Laplace's approximation of the figures' log probability under `spread`, by which spreads are compared.
    """

    spread: Spread
    index: dict[str, int]
    effects: Floats
    covariance: Floats
    log_evidence: float

    @classmethod
    def fit(cls, evidence: Sequence[Evidence], spread: Spread | None = None) -> Surrogate:
        """Fit the effects to `evidence`; without any, they stay what is believed."""
        spread = spread or Spread()
        if not evidence:
            return cls(spread, {}, np.zeros(0), np.zeros((0, 0)), 0.0)
        forms = [parts(one.model, one.quantization, () if one.kind == DIVERGENCE else (one.kind,)) for one in evidence]
        names = tuple(dict.fromkeys(name for form in forms for part in form for name, _ in part))
        beliefs = np.array([belief(name, spread) for name in names]).reshape(-1, 2)
        mean, precision = beliefs[:, 0], 1 / beliefs[:, 1] ** 2
        design, figures = _Design.of(forms, names), _Figures.of(evidence)

        effects = mean.copy()
        for _ in range(_STEPS):
            log_loss, slopes = design.log_loss(effects)
            residual, scale, variance = figures.residual(log_loss, spread)
            jacobian = slopes * scale[:, None]
            weighted = jacobian / variance[:, None]
            hessian = weighted.T @ jacobian
            hessian[np.diag_indices_from(hessian)] += precision
            step = np.linalg.solve(hessian, weighted.T @ residual - precision * (effects - mean))
            longest = float(np.abs(step).max(initial=0.0))
            effects = effects + step * min(1.0, _LARGEST_STEP / max(longest, 1e-300))
            if longest < _TOLERANCE:
                break
        log_evidence = -0.5 * float(
            np.sum(residual**2 / variance + np.log(variance))
            + precision @ (effects - mean) ** 2
            - np.sum(np.log(precision))
            + np.linalg.slogdet(hessian)[1]
        )
        covariance: Floats = np.asarray(np.linalg.inv(hessian), dtype=np.float64)
        return cls(spread, {name: i for i, name in enumerate(names)}, effects, covariance, log_evidence)

    def log_loss(self, model: str, quantization: Quantization, kinds: tuple[str, ...] = ()) -> LogLoss:
        """Return what to expect of a figure that has no error of its own.

        Parameters
        ----------
        model
            Name, in lower case; its size is the catalogue's or the name's, else that of a typical model.
        kinds
            Kinds of benchmarks, for the geometric mean of their losses; none for the divergence.
        """
        form = parts(model, quantization, kinds)
        totals = np.array([self._mean(part) for part in form])
        shares = np.exp(totals - totals.max())
        mean = float(totals.max() + np.log(shares.sum()))
        shares /= shares.sum()
        linear = [(name, c * float(share)) for part, share in zip(form, shares, strict=True) for name, c in part]
        return LogLoss(mean, math.hypot(self._deviation(linear), self.spread.benchmark if kinds else 0.0))

    def sensitivity(self, model: str, kinds: tuple[str, ...]) -> LogLoss:
        """Return what to expect of the loss of `kinds` of benchmarks over the divergence, as a logarithm."""
        terms = sensitivity(model, kinds)
        return LogLoss(self._mean(terms), math.hypot(self._deviation(terms), self.spread.benchmark))

    def _mean(self, terms: Terms) -> float:
        return sum(
            c * (float(self.effects[self.index[name]]) if name in self.index else belief(name, self.spread)[0])
            for name, c in terms
        )

    def _deviation(self, terms: Sequence[tuple[str, float]]) -> float:
        """Return the standard deviation of a linear form of effects; those without figures have their belief's."""
        slopes: dict[str, float] = {}
        for name, c in terms:
            slopes[name] = slopes.get(name, 0.0) + c
        seen = [name for name in slopes if name in self.index]
        rows, along = [self.index[name] for name in seen], np.array([slopes[name] for name in seen])
        known = float(along @ self.covariance[np.ix_(rows, rows)] @ along) if rows else 0.0
        unknown = sum((c * belief(name, self.spread)[1]) ** 2 for name, c in slopes.items() if name not in self.index)
        return math.sqrt(known + unknown)


def fitted_spread(evidence: Sequence[Evidence], start: Spread | None = None) -> Spread:
    """Return the spread under which `evidence` is most probable, by climbing in steps of a quarter.

    Evidence maximisation: Bishop, section 3.5.
    """
    best = start or Spread()
    height = Surrogate.fit(evidence, best).log_evidence
    climbing = True
    while climbing:
        climbing = False
        for i in range(len(astuple(best))):
            for factor in (1.25, 0.8):
                values = list(astuple(best))
                values[i] *= factor
                candidate = Spread(*values)
                reached = Surrogate.fit(evidence, candidate).log_evidence
                if reached > height + 1e-3:
                    best, height, climbing = candidate, reached, True
                    break
    return best


@dataclass(frozen=True, slots=True)
class _Design:
    """Coefficients of the parts of N figures over E effects, a figure's parts below each other; where each starts."""

    coefficients: Floats
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, forms: Sequence[tuple[Terms, ...]], names: Sequence[str]) -> _Design:
        index = {name: i for i, name in enumerate(names)}
        counts = np.array([len(form) for form in forms], dtype=np.intp)
        coefficients = np.zeros((int(counts.sum()), len(names)))
        for row, part in zip(coefficients, (part for form in forms for part in form), strict=True):
            for name, c in part:
                row[index[name]] += c
        return cls(coefficients, np.cumsum(counts) - counts)

    def log_loss(self, effects: Floats) -> tuple[Floats, Floats]:
        """Return the logarithm of every figure's loss (N,) and its slopes (N, E)."""
        values = np.exp(np.minimum(self.coefficients @ effects, 50.0))
        losses = np.add.reduceat(values, self.starts)
        slopes = np.add.reduceat(values[:, None] * self.coefficients, self.starts, axis=0)
        slopes /= losses[:, None]
        return np.log(losses), slopes


@dataclass(frozen=True, slots=True)
class _Figures:
    """What N figures say: the logarithm of a divergence, or the loss of a benchmark, and the error of either."""

    is_divergence: NDArray[np.bool_]
    value: Floats
    error: Floats

    @classmethod
    def of(cls, evidence: Sequence[Evidence]) -> _Figures:
        is_divergence = np.array([one.kind == DIVERGENCE for one in evidence], dtype=bool)
        value = np.array([one.value for one in evidence], dtype=float)
        error = np.array([one.error for one in evidence], dtype=float)
        # A divergence within its error, or below 0 as a ratio of perplexities can be, says: at most about the error.
        nats = np.maximum(value, np.maximum(error, 1e-6))
        logs = np.log(np.where(is_divergence, nats, np.maximum(value, 1e-3)))
        relative = np.minimum(error / nats, 1.0)
        return cls(
            is_divergence,
            np.where(is_divergence, logs, -logs),
            np.where(is_divergence, relative, error / np.maximum(value, 0.05)),
        )

    def residual(self, log_loss: Floats, spread: Spread) -> tuple[Floats, Floats, Floats]:
        """Return residuals, their slope by the log-loss, and variances, all (N,)."""
        loss = np.exp(np.minimum(log_loss, 3.0))
        residual = self.value - np.where(self.is_divergence, log_loss, loss)
        scale = np.where(self.is_divergence, 1.0, loss)
        variance = self.error**2 + np.where(self.is_divergence, 1e-4, (spread.benchmark * loss) ** 2)
        return residual, scale, variance
