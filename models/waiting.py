"""Distributions of the waits before a first token, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.steptimes import Floats


@dataclass(frozen=True, slots=True)
class Queue:
    """A wait that is 0 with probability ``1 - probability``, else exponential with `rate`; arrays are (D,)."""

    probability: Floats
    rate: Floats


@dataclass(frozen=True, slots=True)
class Wait:
    """The residual of a running iteration plus two independent queues; arrays are (D,).

    Attributes
    ----------
    step_s, active
        With probability `active` an iteration of `step_s` seconds runs, whose residual is uniform.
    """

    step_s: Floats
    active: Floats
    first: Queue
    second: Queue

    def mean(self) -> Floats:
        """Return the mean wait, (D,) seconds."""
        return self.active * self.step_s / 2 + sum(
            queue.probability / queue.rate for queue in (self.first, self.second)
        )

    def variance(self) -> Floats:
        """Return the variance of the wait, (D,) seconds squared."""
        residual = self.active * self.step_s**2 / 3 - (self.active * self.step_s / 2) ** 2
        return residual + sum(
            queue.probability * (2 - queue.probability) / queue.rate**2 for queue in (self.first, self.second)
        )

    def cdf(self, at: Floats) -> Floats:
        """Return P(wait <= at) for `at` (D, J)."""
        active = self.active[:, None]
        survival = active * self._with_residual(at) + (1 - active) * self._queued(at)
        return 1 - np.clip(survival, 0.0, 1.0)

    def _queued(self, at: Floats) -> Floats:
        """Survival of the queues' sum, which is a mixture of two exponentials and an atom at 0."""
        after = np.maximum(at, 0)
        total = sum(scale * np.exp(-rate * after) for scale, rate in self._exponentials())
        return np.where(at < 0, 1.0, total)

    def _with_residual(self, at: Floats) -> Floats:
        """Survival of residual and queues: the above, averaged over a uniform residual."""
        step = np.maximum(self.step_s, 1e-12)[:, None]
        after = np.maximum(at, 0)
        within = np.minimum(after, step)
        total = 1 - within / step  # the residual alone exceeds `at`
        for scale, rate in self._exponentials():
            # Mean over the residual r in [0, within] of scale exp(-rate (at - r)).
            total = total + scale * np.exp(-rate * (after - within)) * -np.expm1(-rate * within) / (rate * step)
        return np.where(at < 0, 1.0, total)

    def _exponentials(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """Return scale and rate, (D, 1) each, of the exponentials in the survival of the queues' sum."""
        p, q = self.first.probability, self.second.probability
        a, b = self.first.rate, self.second.rate
        b = np.where(np.abs(b - a) < 1e-6 * a, a * (1 + 1e-6), b)  # equal rates: near enough to the limit
        both = p * q / (b - a)
        return (
            ((p * (1 - q) + both * b)[:, None], a[:, None]),
            ((q * (1 - p) - both * a)[:, None], b[:, None]),
        )


def normal_cdf(distance: Floats, spread: Floats) -> Floats:
    """Return the normal distribution function of `distance` from the mean at standard deviation `spread`.

    Abramowitz & Stegun 1964, 7.1.26, absolute error below 1.5e-7; importing SciPy's takes longer than a plan.
    """
    z = distance / np.maximum(spread, 1e-12) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * np.abs(z))
    polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = polynomial * np.exp(-np.minimum(z * z, 700.0)) / 2
    share: Floats = np.where(z < 0, tail, 1 - tail)
    return share
