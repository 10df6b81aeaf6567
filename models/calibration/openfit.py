"""TPOT corrected by open loops: the load decides how many requests run together, and that how slow a step is.

The coefficients of TPOT change the batch of an open loop, so its TPOT is no sum of parts that stay: the serving model
is run on corrected step times, and the coefficients are sought that make it meet the measurements. What is asked of
them is what :mod:`qplan.models.calibration.fit` asks in closed loops, the maximum of the same posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qplan.core.errors import InputError
from qplan.core.workload import Workload
from qplan.models.calibration.calibrated import FEWEST, Correction
from qplan.models.calibration.fit import FREEDOM
from qplan.models.calibration.lessons import Lesson
from qplan.models.calibration.loops import Load, LoopsPrior
from qplan.models.calibration.parts import Parts
from qplan.models.calibration.priors import OpenLoad
from qplan.models.calibration.steps import corrected_steps
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats, Ints

_FULL = 0.98  # share of the stable rate up to which the serving model is asked
_STEEP = 8.0  # beyond it latency is taken to grow by this power of the rate: saturation that knows a way back
_EVALUATIONS = 60
_SETTLED = 1e-5  # relative; far below what a run scatters
_SMALL = 1e-9


def correct_tpot(prior: LoopsPrior, rows: Sequence[Load], measured: Floats, lesson: Lesson) -> Correction:
    """Correct TPOT by `measured` (N,) seconds of `rows`, none nan, at least one row an open loop.

    Raises
    ------
    InputError
        SciPy is not installed.
    """
    parts = prior(rows)["tpot"]
    mean, deviation = lesson.of(parts)
    served = _Served(prior, rows, parts)
    if len(rows) < FEWEST:

        def by_factor(at: Floats) -> Floats:
            ratios = np.log(served(np.exp(at[0]) * mean) / measured)
            return np.append(ratios / lesson.factor_noise, at[0] / lesson.factor_deviation)

        at, spread = _minimum(by_factor, [np.zeros(1)], -np.inf)
        factor, doubt = float(np.exp(at[0])), float(spread[0])
        return _correction(parts, factor * mean, factor * np.hypot(deviation, doubt * mean), len(rows))

    def residuals(at: Floats) -> Floats:
        ratios = np.log(served(at) / measured) / lesson.noise
        # Squared, these are minus twice the logarithm of Student's density.
        wild: Floats = np.sign(ratios) * np.sqrt((FREEDOM + 1) * np.log1p(ratios**2 / FREEDOM))
        return np.append(wild, (at - mean) / deviation)

    starts = [mean]
    if abs(np.median(np.log(served(mean) / measured))) > lesson.factor_deviation:
        starts.append(_as_a_whole(served, measured, mean))
    coefficients, spread = _minimum(residuals, starts, 0.0)
    return _correction(parts, coefficients, spread, len(rows))


class _Served:
    """TPOT of rows as a function of the coefficients."""

    def __init__(self, prior: LoopsPrior, rows: Sequence[Load], parts: Parts) -> None:
        self._parts, self._prior = parts, prior
        groups: dict[Workload, list[int]] = {}
        for n, row in enumerate(rows):
            if isinstance(row, OpenLoad):
                groups.setdefault(row.workload, []).append(n)
        self._opened = [(workload, np.array(index), *self._of(rows, index)) for workload, index in groups.items()]

    def _of(self, rows: Sequence[Load], index: Sequence[int]) -> tuple[SharingModel, Floats]:
        chosen = [row for row in (rows[n] for n in index) if isinstance(row, OpenLoad)]
        place: Ints = np.array([self._prior.index_of(row.deployment) for row in chosen])
        model = SharingModel.of([row.deployment for row in chosen], self._prior.profiled.steps.take(place))
        return model, np.array([row.rate_qps for row in chosen])

    def __call__(self, coefficients: Floats) -> Floats:
        """Return TPOT (N,) in seconds, finite and positive."""
        finite = np.where(np.isfinite(self._parts.seconds), self._parts.seconds, 0.0)
        tpot = finite @ coefficients
        correction = _correction(self._parts, coefficients, self._parts.deviation, 0)
        for workload, index, model, rate in self._opened:
            corrected = replace(model, steps=corrected_steps(model.steps, correction))
            station = corrected.at(workload, rate).station
            most = np.maximum(_FULL * station.stable_qps, _SMALL)
            tpot[index] = station.at(np.minimum(rate, most), station).tpot_s * np.maximum(rate / most, 1.0) ** _STEEP
        return np.maximum(tpot, _SMALL)


def _as_a_whole(served: _Served, measured: Floats, mean: Floats) -> Floats:
    """Return `mean` times the factor that meets the typical measurement: where to start for an engine far off."""
    low, high = -4.0, 4.0
    for _ in range(20):
        middle = (low + high) / 2
        slow = float(np.median(np.log(served(np.exp(middle) * mean) / measured))) > 0
        low, high = (low, middle) if slow else (middle, high)
    start: Floats = np.exp(low) * mean
    return start


def _minimum(residuals: Callable[[Floats], Floats], starts: Sequence[Floats], least: float) -> tuple[Floats, Floats]:
    """Return where the squares are least, from the better of `starts`, and standard deviations of the curvature."""
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise InputError("calibrating needs scipy: pip install 'qplan[models]'") from None
    start = np.maximum(min(starts, key=lambda one: float((residuals(one) ** 2).sum())), least)
    best = least_squares(
        residuals,
        start,
        bounds=(least, np.inf),
        x_scale="jac",
        ftol=_SETTLED,
        xtol=_SETTLED,
        max_nfev=_EVALUATIONS,
    )
    at, jacobian = np.asarray(best.x, dtype=float), np.asarray(best.jac, dtype=float)
    return at, np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))


def _correction(parts: Parts, coefficients: Floats, deviation: Floats, points: int) -> Correction:
    return Correction(parts.names, tuple(coefficients.tolist()), tuple(deviation.tolist()), points, ())
