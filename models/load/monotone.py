"""Curves of a metric over load, held to what a server can do.

The *elasticity* of a metric is its slope over load in logarithms, d ln y / d ln load. Physics bounds it: a latency
never falls with load (0 and more); the energy of a token never rises, and that of a whole batch never falls (-1 to 0);
throughput never falls, nor grows faster than what is offered (0 to 1). A fitted curve that leaves its bounds, by noise
or by extrapolation, is replaced by one near it that keeps them.
"""

from __future__ import annotations

import math

import numpy as np

from qplan.models.steptimes import Floats

#: Bounds of the elasticity, the least and the greatest, by kind of metric.
RISING = (0.0, math.inf)
SATURATING = (0.0, 1.0)
AMORTISED = (-1.0, 0.0)
FREE = (-math.inf, math.inf)

TOLERANCE = 1e-12


def bounded(log_load: Floats, log_curves: Floats, weight: Floats, elasticity: tuple[float, float]) -> Floats:
    """Return curves near `log_curves`, by weighted squares, whose slopes keep within `elasticity`.

    Parameters
    ----------
    log_load : (G,)
        Rising.
    log_curves, weight : (R, G)
        Logarithms of the metric, one curve a row, and how far each point is to be trusted.
    elasticity
        The least and the greatest slope.

    Notes
    -----
    A lower bound on the slope is an isotonic regression of what is left after it, an upper bound an antitonic one.
    Each alone gives the nearest curve. The second does not break what the first has mended: within a block of it the
    slope is the upper bound, and between two blocks it is no further from that than it was.
    """
    lowest, greatest = elasticity
    curves = np.array(log_curves)
    if lowest > -math.inf:
        curves = _isotonic(curves - lowest * log_load, weight) + lowest * log_load
    if greatest < math.inf:
        curves = greatest * log_load - _isotonic(greatest * log_load - curves, weight)
    return curves


def _isotonic(curves: Floats, weight: Floats) -> Floats:
    """Make each row of `curves` non-decreasing by pooling adjacent violators (Ayer et al. 1955)."""
    from sklearn.isotonic import isotonic_regression

    for row in np.flatnonzero((np.diff(curves, axis=1) < -TOLERANCE).any(axis=1)):
        curves[row] = isotonic_regression(curves[row], sample_weight=weight[row])
    return curves


def read(log_load: Floats, log_curves: Floats, row: Floats, at: Floats) -> Floats:
    """Read curve `row` (N,) at logarithms of load `at` (N,): linear between points, the end slopes prolonged."""
    left = np.clip(np.searchsorted(log_load, at, side="right") - 1, 0, len(log_load) - 2)
    share = (at - log_load[left]) / (log_load[left + 1] - log_load[left])
    index = row.astype(np.intp)
    result: Floats = log_curves[index, left] * (1 - share) + log_curves[index, left + 1] * share
    return result
