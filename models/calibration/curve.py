"""Error against number of calibration points: what calibrating promises for a system never seen.

Each family is calibrated in turn on a few of its rows, chosen as a user would choose them, with lessons from families
of *other systems* alone, and judged on its other rows. The same model on the same engine at another tensor parallelism
would tell too much: it is the same system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from qplan.core.errors import InputError
from qplan.models.calibration.calibrated import correction
from qplan.models.calibration.lessons import Lesson, learn
from qplan.models.calibration.parts import Parts, Prior, RowT
from qplan.models.calibration.points import choose
from qplan.models.steptimes import Floats, Ints

COUNTS = (0, 1, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Family(Generic[RowT]):
    """Rows of one configuration with what was measured.

    Attributes
    ----------
    name
        Of the configuration.
    system
        What it shares with families that must not teach it: GPU, model, quantization, engine and version.
    measured
        Seconds (N,) by metric.
    coordinates : (N, F)
        Where each row lies, for :func:`qplan.models.calibration.choose`.
    """

    name: str
    system: str
    rows: tuple[RowT, ...]
    measured: Mapping[str, Floats]
    coordinates: Floats


@dataclass(frozen=True, slots=True)
class Errors:
    """Median, 90th percentile and mean of absolute relative errors, over so many rows of so many families."""

    median: float
    p90: float
    mean: float
    rows: int
    families: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Absolute relative errors of rows that calibration did not see.

    Attributes
    ----------
    uncorrected
        Of the prior as it is, by metric and family.
    calibrated
        By metric, number of points and family; rows of all draws together. With 0 points: the lessons of others alone.
    left_out
        What leave-one-out on the points said (:attr:`Correction.error`), by metric, number of points and family, one
        for each draw.
    """

    uncorrected: Mapping[str, Mapping[str, Floats]]
    calibrated: Mapping[str, Mapping[int, Mapping[str, Floats]]]
    left_out: Mapping[str, Mapping[int, Mapping[str, Floats]]]

    def errors(self, metric: str, count: int | None) -> Errors:
        """Summarise over all families that have more rows than `count`; None is the uncorrected prior."""
        by_family = self.uncorrected[metric] if count is None else self.calibrated[metric][count]
        errors = np.concatenate(list(by_family.values()))
        return Errors(
            float(np.median(errors)),
            float(np.percentile(errors, 90)),
            float(errors.mean()),
            sum(len(self.uncorrected[metric][family]) for family in by_family),
            len(by_family),
        )


def error_curve(
    prior: Prior[RowT],
    families: Sequence[Family[RowT]],
    counts: Sequence[int] = COUNTS,
    draws: int = 5,
    teachers: Sequence[Family[RowT]] | None = None,
) -> Curve:
    """Calibrate each family with each number of points, `draws` times, and judge it on its other rows.

    Families with no more rows than points are left out at that number. `teachers` are whom the lessons come from, as
    far as they are of other systems; `families` themselves by default.

    Raises
    ------
    InputError
        The families are of one system: there is nobody to learn from.
    """
    systems = {family.system for family in families}
    teachers = families if teachers is None else teachers
    if any({family.system for family in teachers} <= {system} for system in systems):
        raise InputError("an error curve needs families of two systems or more: one is calibrated, the others teach it")
    found = [prior(family.rows) for family in families]
    taught = [prior(family.rows) for family in teachers]
    curve = Curve({}, {}, {})
    for metric in found[0]:
        known = [(f.system, p[metric], f.measured[metric]) for f, p in zip(teachers, taught, strict=True)]
        lessons = {system: learn([(p, y) for of, p, y in known if of != system]) for system in systems}
        uncorrected: dict[str, Floats] = {}
        calibrated: dict[int, dict[str, Floats]] = {count: {} for count in counts}
        left_out: dict[int, dict[str, Floats]] = {count: {} for count in counts}
        for family, its_parts in zip(families, found, strict=True):
            parts, measured = its_parts[metric], family.measured[metric]
            uncorrected[family.name] = np.abs(parts.total / measured - 1)
            for count in (count for count in counts if count < len(measured)):
                trials = [
                    _trial(parts, measured, choose(family.coordinates, count, seed), lessons[family.system])
                    for seed in range(draws if count else 1)
                ]
                calibrated[count][family.name] = np.concatenate([errors for errors, _ in trials])
                left_out[count][family.name] = np.array([said for _, said in trials if said is not None])
        curve = Curve(
            {**curve.uncorrected, metric: uncorrected},
            {**curve.calibrated, metric: {count: errors for count, errors in calibrated.items() if errors}},
            {**curve.left_out, metric: left_out},
        )
    return curve


def _trial(parts: Parts, measured: Floats, chosen: Ints, lesson: Lesson) -> tuple[Floats, float | None]:
    """Return the errors of the rows that were not chosen, and what leaving out the chosen ones in turn said of them."""
    corrected = correction(parts.take(chosen), measured[chosen], lesson)
    others = np.setdiff1d(np.arange(len(measured)), chosen)
    return np.abs(corrected.apply(parts.take(others)).total / measured[others] - 1), corrected.error
