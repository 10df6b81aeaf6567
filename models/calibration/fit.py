"""Coefficients of parts from measurements: a robust maximum a posteriori under a bound at 0."""

from __future__ import annotations

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Floats

FREEDOM = 4.0  # degrees of freedom of the noise: one wild run of ten does not turn the fit
_ROUNDS = 20
_CLOSE = 1e-4
_TINY = 1e-9


def fit(seconds: Floats, measured: Floats, mean: Floats, deviation: Floats, noise: float) -> tuple[Floats, Floats]:
    """Return coefficients and their standard deviations, (K,) each.

    The logarithm of measured over predicted is Student-t with scale `noise` (Lange, Little & Taylor 1989, section 2),
    the coefficients are normal around `mean` and at least 0. Solved by iteratively reweighted non-negative least
    squares (Lawson & Hanson 1974): with weights ``log(p / y) / (p (p - y))``, taken at the last prediction ``p``, they
    have the gradient of ``log(p / y)² / 2``.

    Parameters
    ----------
    seconds : (N, K)
        Parts of each row; N may be 0.
    measured : (N,)
        Positive.
    mean, deviation : (K,)
        What is known of the coefficients beforehand.
    """
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise InputError("calibrating needs scipy: pip install 'qplan[models]'") from None
    prior = np.diag(1 / deviation)
    coefficients: Floats = np.maximum(mean, 0.0)
    predicted = _positive(seconds @ coefficients, measured)
    for _ in range(_ROUNDS):
        weights = _weights(predicted, measured, noise)
        coefficients = nnls(
            np.vstack([seconds * weights[:, None], prior]), np.concatenate([measured * weights, prior @ mean])
        )[0]
        # Halfway, on a log scale: full steps can swing between two sets of rows taken for wild.
        step = np.sqrt(predicted * _positive(seconds @ coefficients, measured))
        settled = bool((np.abs(np.log(step / predicted)) < _CLOSE).all())
        predicted = step
        if settled:
            break
    weighted = np.vstack([seconds * _weights(predicted, measured, noise)[:, None], prior])
    variance = np.diag(np.linalg.inv(weighted.T @ weighted))
    return coefficients, np.sqrt(variance)


def _positive(predicted: Floats, measured: Floats) -> Floats:
    """Replace predictions of 0, whose logarithm says nothing, by the measurement."""
    return np.where(predicted > 0, predicted, measured)


def _weights(predicted: Floats, measured: Floats, noise: float) -> Floats:
    """Return weights under which least squares in seconds has the gradient of the logarithmic fit."""
    residual = np.log(predicted / measured)
    over = predicted / measured - 1
    slope = np.divide(residual, over, out=np.ones_like(over), where=np.abs(over) > _TINY)
    student = (FREEDOM + 1) / (FREEDOM + (residual / noise) ** 2)
    weights: Floats = np.sqrt(student * slope / (predicted * measured)) / noise
    return weights
