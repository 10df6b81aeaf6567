"""How large an error to expect, from how difficult a query is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.steptimes import Floats

_SMALLEST = 1e-4  # relative errors below this are noise of the arithmetic
_RIDGE = 1.0  # rows that a slope of one must pay for: keeps slopes at zero where few rows speak for them


@dataclass(frozen=True, slots=True)
class ErrorScale:
    """Expected absolute log error: ``exp(intercept + difficulty @ slopes)``.

    Slopes are never negative: a more difficult query is never surer.
    """

    intercept: float
    slopes: tuple[float, ...]

    @classmethod
    def fit(cls, errors: Floats, difficulty: Floats, weights: Floats) -> ErrorScale:
        """Fit by maximum likelihood of Laplace errors whose scale is log-linear in the difficulty.

        Parameters
        ----------
        errors : (N,)
            Log errors, out of fold.
        difficulty : (N, D)
        weights : (N,)

        Notes
        -----
        The negative log-likelihood ``log s + |e| / s`` is convex in intercept and slopes, since ``log s`` is linear in
        them.
        """
        from scipy.optimize import minimize

        size = np.maximum(np.abs(errors), _SMALLEST)
        share = weights / weights.sum()
        ridge = _RIDGE / weights.sum()

        def loss(at: Floats) -> tuple[float, Floats]:
            log_scale = at[0] + difficulty @ at[1:]
            relative = size * np.exp(-log_scale)
            by_row = share * (1 - relative)
            gradient = np.concatenate([[by_row.sum()], by_row @ difficulty + ridge * at[1:]])
            return float(share @ (log_scale + relative) + ridge / 2 * at[1:] @ at[1:]), gradient

        start = np.concatenate([[np.log(share @ size)], np.zeros(difficulty.shape[1])])
        bounds = [(None, None)] + [(0.0, None)] * difficulty.shape[1]
        found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
        return cls(float(found[0]), tuple(map(float, found[1:])))

    def at(self, difficulty: Floats) -> Floats:
        """Return the expected absolute log error, (N,), of queries of (N, D) difficulty."""
        with np.errstate(over="ignore"):  # infinitely far off: no bound
            scale: Floats = np.exp(self.intercept + difficulty @ np.array(self.slopes))
        return scale
