"""Calibrating a prior on points of one system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.models.calibration.fit import fit
from qplan.models.calibration.lessons import Lesson, Lessons
from qplan.models.calibration.parts import Parts, Prior, RowT
from qplan.models.steptimes import Floats

FEWEST = 3  # points that can tell parts apart; one or two only tell how much slower or faster the whole is


@dataclass(frozen=True, slots=True)
class Correction:
    """The coefficients of one metric.

    Attributes
    ----------
    names, coefficients, deviation : K
        Parts, their coefficients and standard deviations.
    points
        Measurements that it rests on, besides the lessons.
    left_out : points
        Predicted over measured of each point, by a calibration on the others; empty where that was not asked for.
    """

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    deviation: tuple[float, ...]
    points: int
    left_out: tuple[float, ...]

    @property
    def error(self) -> float | None:
        """Median absolute error of the points that were left out in turn, a fraction; None without a point.

        It is an estimate of the error elsewhere only as far as the points cover where predictions are asked, and a
        coarse one: it rests on `points` numbers, each of a calibration with a point less.
        """
        return float(np.median(np.abs(np.array(self.left_out) - 1))) if self.left_out else None

    def apply(self, parts: Parts) -> Parts:
        """Return `parts` with the corrected coefficients as their own."""
        if parts.names != self.names:
            raise InputError(
                f"calibration: made for the parts {', '.join(self.names)}; this prior has {', '.join(parts.names)}"
            )
        return replace(parts, own=np.array(self.coefficients), deviation=np.array(self.deviation))


@dataclass(frozen=True, slots=True)
class Calibrated(Generic[RowT]):
    """A prior with corrected coefficients; itself a prior, so that it can be calibrated further."""

    prior: Prior[RowT]
    corrections: Mapping[str, Correction]

    def __call__(self, rows: Sequence[RowT]) -> Mapping[str, Parts]:
        """Return the corrected parts by metric; ``total`` of each is the prediction."""
        found = self.prior(rows)
        if missing := [metric for metric in found if metric not in self.corrections]:
            raise InputError(
                f"calibration: the prior predicts {missing[0]}, of which this calibration has no correction"
            )
        return {metric: self.corrections[metric].apply(parts) for metric, parts in found.items()}

    def to_data(self) -> dict[str, Any]:
        """Return the corrections as plain numbers and lists; the prior is not part of it."""
        return {metric: asdict(correction) for metric, correction in self.corrections.items()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], prior: Prior[RowT]) -> Calibrated[RowT]:
        """Put the corrections of :meth:`to_data` on `prior`; raise :class:`InputError` for anything else."""
        if not isinstance(data, Mapping):
            raise InputError("calibration: expected a correction by metric")
        return cls(prior, {str(metric): read_correction(str(metric), entry) for metric, entry in data.items()})


def calibrate(
    prior: Prior[RowT],
    rows: Sequence[RowT],
    measured: Mapping[str, Sequence[float] | Floats],
    lessons: Lessons | None = None,
) -> Calibrated[RowT]:
    """Correct `prior` by measurements of one system.

    Parameters
    ----------
    rows
        N points; none is allowed, and leaves what `lessons` say.
    measured
        Seconds (N,) by metric, nan where a point lacks one.
    lessons
        What other systems taught, by metric (:func:`qplan.models.calibration.lessons.learn`,
        :func:`~qplan.models.calibration.lessons.shipped_lessons`); without them the prior's own coefficients are where
        the fit starts from.

    Raises
    ------
    InputError
        A metric is unknown to the prior, a measurement is not positive, or the prior has no finite prediction for a
        point that has one.
    """
    found = prior(rows)
    for metric in measured:
        if metric not in found:
            known = ", ".join(found)
            raise InputError(f"calibration: the prior has no metric '{metric}'; it has {known}{nearest(metric, found)}")
    lessons = lessons or {}
    return Calibrated(
        prior,
        {
            metric: correction(parts, _seconds(metric, measured.get(metric), parts), lessons.get(metric))
            for metric, parts in found.items()
        },
    )


def correction(parts: Parts, measured: Floats, lesson: Lesson | None = None, *, leave_out: bool = True) -> Correction:
    """Correct one metric by `measured` (N,) seconds, nan where there is none.

    Without `leave_out` no point is left out in turn: a fit instead of N + 1.
    """
    lesson = lesson or Lesson.none(parts)
    known = np.flatnonzero(~np.isnan(measured))
    solve = _factor if len(known) < FEWEST else _coefficients
    left_out = []
    for point in range(len(known) if leave_out else 0):
        others = np.delete(known, point)
        coefficients, _ = solve(parts.take(others), measured[others], lesson)
        left_out.append(float(parts.seconds[known[point]] @ coefficients / measured[known[point]]))
    coefficients, doubt = solve(parts.take(known), measured[known], lesson)
    return Correction(parts.names, tuple(coefficients.tolist()), tuple(doubt.tolist()), len(known), tuple(left_out))


def _coefficients(parts: Parts, measured: Floats, lesson: Lesson) -> tuple[Floats, Floats]:
    """Return a coefficient and its standard deviation for each part."""
    mean, deviation = lesson.of(parts)
    return fit(parts.seconds, measured, mean, deviation, lesson.noise)


def _factor(parts: Parts, measured: Floats, lesson: Lesson) -> tuple[Floats, Floats]:
    """Return the lesson's coefficients, all times the factor that `measured` says, shrunk to 1 on a log scale."""
    mean, deviation = lesson.of(parts)
    ratios = np.log(measured / (parts.seconds @ mean))
    information = len(ratios) + (lesson.factor_noise / lesson.factor_deviation) ** 2
    factor = float(np.exp(ratios.sum() / information))
    doubt = lesson.factor_noise / np.sqrt(information)
    return factor * mean, factor * np.hypot(deviation, doubt * mean)


def _seconds(metric: str, values: Sequence[float] | Floats | None, parts: Parts) -> Floats:
    """Check the measurements of a metric."""
    rows = len(parts.seconds)
    if values is None:
        return np.full(rows, np.nan)
    seconds = np.asarray(values, dtype=float)
    if seconds.shape != (rows,):
        raise InputError(
            f"calibration: {metric} has shape {seconds.shape}; expected one number for each of {rows} points"
        )
    wrong = np.flatnonzero(~np.isnan(seconds) & ~(np.isfinite(seconds) & (seconds > 0)))
    if len(wrong):
        raise InputError(
            f"calibration: {metric} of point {wrong[0]} is {seconds[wrong[0]]:g} s; expected a positive time"
        )
    beyond = np.flatnonzero(~np.isnan(seconds) & ~np.isfinite(parts.seconds).all(axis=1))
    if len(beyond):
        raise InputError(
            f"calibration: the prior is saturated at point {beyond[0]} and has no {metric} to correct; "
            "leave the point out or measure at a lower load"
        )
    return seconds


def read_correction(metric: str, entry: Any) -> Correction:
    """Read what :func:`dataclasses.asdict` made of a correction; raise :class:`InputError` for anything else."""
    try:
        made = Correction(
            tuple(map(str, entry["names"])),
            tuple(map(float, entry["coefficients"])),
            tuple(map(float, entry["deviation"])),
            int(entry["points"]),
            tuple(map(float, entry["left_out"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"calibration: {metric} is not a correction: {error!r}") from None
    numbers = np.array([*made.coefficients, *made.deviation, *made.left_out])
    if not len(made.names) == len(made.coefficients) == len(made.deviation) or len(made.left_out) not in (
        0,
        made.points,
    ):
        raise InputError(
            f"calibration: {metric} needs a coefficient and a deviation for each name, an error each point"
        )
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise InputError(f"calibration: numbers of {metric} must be finite and 0 or more")
    return made
