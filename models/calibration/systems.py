"""Which correction a deployment gets: its own, its system's, or what other systems teach.

A *system* is a GPU, model, quantization, engine and version; its deployments differ in tensor parallelism. What was
measured of one deployment holds for another of its system nearly as well (TPOT of public runs was off by 8 % in the
median, TTFT by 13 %; uncorrected by 10 % and 67 %). It does not hold for other models, quantizations or GPUs: there
corrections of the same engine did *worse* than none (TPOT 16 to 49 %), and the lessons of all systems together are
used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.models.calibration.calibrated import FEWEST
from qplan.models.calibration.doubt import DEPLOYMENT, ENOUGH, LESSONS, SYSTEM, Doubt, hull, own_range
from qplan.models.calibration.latency import METRICS, LatencyCorrection, correct, left_out, pick
from qplan.models.calibration.lessons import Lessons
from qplan.models.calibration.loops import Load, LoopsPrior
from qplan.models.calibration.priors import ClosedLoad
from qplan.models.power.curves import Ratio
from qplan.models.steptimes import Floats

Branch = tuple[str, ...]
_SYSTEM_DEPTH = 5
LEVELS = {0: LESSONS, _SYSTEM_DEPTH: SYSTEM, _SYSTEM_DEPTH + 1: DEPLOYMENT}
"""Depth of a branch, and what its correction was fitted to."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A correction, and what is known of what it leaves.

    Attributes
    ----------
    error
        Measured over predicted by metric: central 90 %.
    before, after
        Median absolute error by metric, without a correction and of points left out of it; a metric that was not
        measured is not there.
    saturated
        Runs that were measured where the prior has no finite prediction: they could not be used.
    loads
        What was measured, in words.
    """

    correction: LatencyCorrection
    error: Mapping[str, Ratio]
    before: Mapping[str, float]
    after: Mapping[str, float]
    saturated: int
    loads: str

    def to_data(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "correction": self.correction.to_data(),
            "error": {metric: [ratio.lower, ratio.upper] for metric, ratio in self.error.items()},
            "before": dict(self.before),
            "after": dict(self.after),
            "saturated": self.saturated,
            "loads": self.loads,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fit:
        """Read what :meth:`to_data` returned; raise :class:`InputError` for anything else."""
        try:
            return cls(
                LatencyCorrection.from_data(data["correction"]),
                {str(metric): Ratio(*map(float, ends)) for metric, ends in data["error"].items()},
                {str(metric): float(value) for metric, value in data["before"].items()},
                {str(metric): float(value) for metric, value in data["after"].items()},
                int(data["saturated"]),
                str(data["loads"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"calibration: not a fitted correction: {type(error).__name__} {error}") from None


@dataclass(frozen=True, slots=True)
class Systems:
    """Corrections of the systems that were measured, and that of the lessons, for all others, at the branch ``()``."""

    fits: Mapping[Branch, Fit]

    def branch_for(self, deployment: Deployment) -> Branch:
        """Return the branch whose correction `deployment` gets."""
        own = branch_of(deployment)
        return next((one for one in (own, own[:_SYSTEM_DEPTH]) if one in self.fits), ())

    @property
    def measured(self) -> tuple[Branch, ...]:
        """Systems with measurements."""
        return tuple(branch for branch in self.fits if len(branch) == _SYSTEM_DEPTH)

    @property
    def deployments(self) -> tuple[Branch, ...]:
        """Deployments with enough measurements of their own."""
        return tuple(branch for branch in self.fits if len(branch) > _SYSTEM_DEPTH)


def branch_of(deployment: Deployment) -> Branch:
    """Return the names of the deployment's system, and its tensor parallelism."""
    return (
        str(deployment.gpu),
        deployment.engine,
        deployment.engine_version,
        str(deployment.model),
        str(deployment.quantization),
        f"TP{deployment.tp}",
    )


def fit_systems(
    prior: LoopsPrior, rows: Sequence[Load], measured: Mapping[str, Floats], lessons: Lessons, doubt: Doubt
) -> Systems:
    """Correct every system among `rows`, and every deployment with enough of its own.

    Parameters
    ----------
    rows, measured
        N runs, and their means in seconds (N,) by metric, nan unknown.
    doubt
        What corrections leave, by how many points they rest on (:mod:`qplan.models.calibration.doubt`).
    """
    branches = [branch_of(row.deployment) for row in rows]
    groups: dict[Branch, list[int]] = {(): []}
    for n, branch in enumerate(branches):
        groups.setdefault(branch[:_SYSTEM_DEPTH], []).append(n)
        groups.setdefault(branch, []).append(n)
    return Systems(
        {
            branch: _fit(prior, pick(rows, np.array(index)), _of(measured, index), LEVELS[len(branch)], lessons, doubt)
            for branch, index in sorted(groups.items())
            if len(branch) <= _SYSTEM_DEPTH or len(index) >= FEWEST
        }
    )


def _fit(
    prior: LoopsPrior,
    rows: Sequence[Load],
    measured: Mapping[str, Floats],
    level: str,
    lessons: Lessons,
    doubt: Doubt,
) -> Fit:
    found, plain = correct(prior, rows, measured, lessons), prior(rows)
    ratios = left_out(prior, rows, measured, lessons)
    points = {"tpot": found.tpot.points, "ttft": found.ttft.points}
    error, before, after, saturated = {}, {}, {}, np.zeros(len(rows), dtype=bool)
    for metric in METRICS:
        known = ~np.isnan(measured[metric])
        finite = np.isfinite(plain[metric].seconds).all(axis=1)
        saturated |= known & ~finite
        held = ratios[metric][~np.isnan(ratios[metric])]
        own = own_range(held)
        # Points of a system are no evidence of what it does at a tensor parallelism without any.
        told = level == DEPLOYMENT and len(held) >= ENOUGH
        error[metric] = own if told else hull(doubt.range(metric, level, points[metric]), own)
        if len(held):
            use = known & finite
            before[metric] = float(np.median(np.abs(plain[metric].total[use] / measured[metric][use] - 1)))
            after[metric] = float(np.median(np.abs(1 / held - 1)))
    return Fit(found, error, before, after, int(saturated.sum()), _loads(rows))


def _of(measured: Mapping[str, Floats], index: Sequence[int]) -> dict[str, Floats]:
    return {metric: measured[metric][list(index)] for metric in METRICS}


def _loads(rows: Sequence[Load]) -> str:
    """Say what was measured: a range of concurrency, or of rates, and of prompt lengths."""
    said = []
    closed = [row.concurrency for row in rows if isinstance(row, ClosedLoad)]
    if closed:
        said.append(f"{_span(closed)} requests in flight")
    opened = [row.rate_qps for row in rows if not isinstance(row, ClosedLoad)]
    if opened:
        said.append(f"{_span(opened)} req/s")
    return " and ".join(said)


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"
