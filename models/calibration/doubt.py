"""What a calibration leaves: measured over predicted, by what it rests on.

A handful of points cannot tell their own error. What they left on *other* systems does: public runs were calibrated
with 0, 1, 3 ... points and lessons from other systems alone, and judged on their other rows
(``python -m qplan.models.calibration.teach``). From :data:`ENOUGH` points on, those left out in turn tell more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qplan.core.errors import InputError
from qplan.models.calibration.curve import COUNTS, Family
from qplan.models.calibration.latency import METRICS, correct, pick
from qplan.models.calibration.lessons import SHIPPED, Lessons
from qplan.models.calibration.loops import LoopsPrior
from qplan.models.calibration.points import choose
from qplan.models.calibration.priors import ClosedLoad
from qplan.models.intervals.quantile import conformal_quantile
from qplan.models.power.curves import Ratio
from qplan.models.steptimes import Floats, Ints

COVERAGE = 0.9
ENOUGH = 20
DEPLOYMENT, SYSTEM, LESSONS = "deployment", "other tensor parallelism", "other systems"
_DRAWS = 3

Errors = Mapping[str, Mapping[str, Mapping[int, Mapping[str, Floats]]]]
"""Log ratios of measured over predicted, by metric, level, number of points and family."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """How far measured lies from predicted, in 90 % of cases, by metric, level and number of points.

    Attributes
    ----------
    factors
        Measured over predicted lies between ``1 / factor`` and ``factor``.
    """

    factors: Mapping[str, Mapping[str, Mapping[int, float]]]

    @classmethod
    def of(cls, errors: Errors) -> Doubt:
        """Take the conformal quantiles of a further family's errors, each family weighing the same."""
        return cls(
            {
                metric: {
                    level: {count: _factor(families) for count, families in by_count.items() if families}
                    for level, by_count in levels.items()
                }
                for metric, levels in errors.items()
            }
        )

    def range(self, metric: str, level: str, points: int) -> Ratio:
        """Return the range of a correction by `points` measurements: that of the most points not above it."""
        by_count = self.factors[metric][level if points else LESSONS]
        factor = by_count[max(count for count in by_count if count <= points)]
        return Ratio(1 / factor, factor)

    def to_data(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            metric: {
                level: {str(count): factor for count, factor in by_count.items()} for level, by_count in levels.items()
            }
            for metric, levels in self.factors.items()
        }

    @classmethod
    def from_data(cls, data: Any) -> Doubt:
        """Read what :meth:`to_data` returned; raise :class:`InputError` for anything else."""
        try:
            return cls(
                {
                    str(metric): {
                        str(level): {int(count): float(factor) for count, factor in by_count.items()}
                        for level, by_count in levels.items()
                    }
                    for metric, levels in data.items()
                }
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"what calibrations leave: not what was written: {error}") from None


def own_range(ratios: Floats) -> Ratio:
    """Return the central 90 % of measured over predicted of points left out in turn, (N,).

    Quantiles count a further point that may be anything (Vovk, Gammerman & Shafer 2005, section 2.2), as far as there
    are points for that.
    """
    if not len(ratios):
        return Ratio(1.0, 1.0)
    tail = int((1 - COVERAGE) / 2 * (len(ratios) + 1))
    ordered = np.sort(ratios)
    return Ratio(float(ordered[max(tail - 1, 0)]), float(ordered[min(len(ratios) - tail, len(ratios) - 1)]))


def hull(one: Ratio, other: Ratio) -> Ratio:
    """Return the range that holds both."""
    return Ratio(min(one.lower, other.lower), max(one.upper, other.upper))


def errors_left(
    prior: LoopsPrior, families: Sequence[Family[ClosedLoad]], lessons: Mapping[str, Lessons], draws: int = _DRAWS
) -> Errors:
    """Calibrate each family on its own points, and on those of its system's other families, and judge it on the rest.

    Parameters
    ----------
    lessons
        By system, from other systems alone.
    """
    errors: dict[str, dict[str, dict[int, dict[str, Floats]]]] = {
        metric: {level: {} for level in (LESSONS, DEPLOYMENT, SYSTEM)} for metric in METRICS
    }
    for family in families:
        relatives = [one for one in families if one.system == family.system and one.name != family.name]
        for count in COUNTS:
            for level, teachers in ((DEPLOYMENT, [family]), (SYSTEM, relatives)) if count else ((LESSONS, [family]),):
                rows = tuple(row for one in teachers for row in one.rows)
                if len(rows) <= count:
                    continue
                here = prior.only({row.deployment for row in (*rows, *family.rows)})
                measured = {m: np.concatenate([one.measured[m] for one in teachers]) for m in METRICS}
                places = np.concatenate([one.coordinates for one in teachers])
                trials = [choose(places, count, seed) for seed in range(draws if count else 1)]
                found = [
                    correct(here, pick(rows, chosen), {m: measured[m][chosen] for m in METRICS}, lessons[family.system])
                    for chosen in trials
                ]
                left: list[Ints] = [
                    np.setdiff1d(np.arange(len(family.rows)), chosen if level == DEPLOYMENT else []).astype(np.intp)
                    for chosen in trials
                ]
                predicted = [
                    one.predict(here, pick(family.rows, others)) for one, others in zip(found, left, strict=True)
                ]
                for metric in METRICS:
                    ratios = [
                        np.log(family.measured[metric][others] / one[metric])
                        for one, others in zip(predicted, left, strict=True)
                    ]
                    errors[metric][level].setdefault(count, {})[family.name] = np.concatenate(ratios)
    return errors


@cache
def shipped_doubt() -> Doubt:
    """Return what calibrations left on public closed-loop runs."""
    return Doubt.from_data(json.loads(SHIPPED.read_text(encoding="utf-8"))["doubt"])


def _factor(families: Mapping[str, Floats]) -> float:
    """Return what 90 % of a further family's absolute log errors stay below, as a factor."""
    errors = np.abs(np.concatenate(list(families.values())))
    groups: Ints = np.repeat(np.arange(len(families)), [len(each) for each in families.values()])
    return float(np.exp(conformal_quantile(errors, COVERAGE, groups)))
