"""The latencies of one engine corrected together: first TPOT, and with it the step times; then TTFT on those.

A wait for prefills follows from how long they take, so TTFT's parts are those of the corrected step times: a plan or
a forecast then saturates where the corrected engine does, and only what is left of TTFT is corrected further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qplan.models.calibration.calibrated import Correction, correction, read_correction
from qplan.models.calibration.lessons import Lesson, Lessons
from qplan.models.calibration.loops import Load, LoopsPrior
from qplan.models.calibration.openfit import correct_tpot
from qplan.models.calibration.parts import Parts
from qplan.models.calibration.priors import OpenLoad
from qplan.models.calibration.steps import corrected_steps
from qplan.models.steptimes import Bools, Floats, Ints, StepTimes

METRICS = ("ttft", "tpot")
_FOLDS = 10  # up to as many points are left out one at a time
_SEED = 0


@dataclass(frozen=True, slots=True)
class LatencyCorrection:
    """Corrections of TPOT, and of TTFT on the step times that the former makes."""

    tpot: Correction
    ttft: Correction

    @property
    def points(self) -> int:
        """Measurements that it rests on, of the metric that has more."""
        return max(self.tpot.points, self.ttft.points)

    def steps(self, steps: StepTimes) -> StepTimes:
        """Return `steps` corrected."""
        return corrected_steps(steps, self.tpot, self.ttft)

    def predict(self, prior: LoopsPrior, rows: Sequence[Load]) -> dict[str, Floats]:
        """Return mean ``ttft`` and ``tpot``, seconds (N,); infinite beyond saturation."""
        parts = prior.corrected(self.tpot)(rows)
        return {"ttft": _total(self.ttft, parts["ttft"]), "tpot": parts["tpot"].total}

    def to_data(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {"tpot": asdict(self.tpot), "ttft": asdict(self.ttft)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> LatencyCorrection:
        """Read what :meth:`to_data` returned; raise :class:`InputError` for anything else."""
        return cls(read_correction("tpot", data["tpot"]), read_correction("ttft", data["ttft"]))


def correct(
    prior: LoopsPrior, rows: Sequence[Load], measured: Mapping[str, Floats], lessons: Lessons
) -> LatencyCorrection:
    """Fit both corrections to `rows` (N, which may be 0) with their `measured` seconds (N,) by metric, nan unknown.

    What the prior takes to be saturated has no finite prediction to correct, and is left out.
    """
    tpot = _tpot(prior, rows, measured["tpot"], lessons)
    ttft = _finite_only(prior.corrected(tpot)(rows)["ttft"], measured["ttft"], lessons, "ttft")
    return LatencyCorrection(tpot, ttft)


def left_out(
    prior: LoopsPrior, rows: Sequence[Load], measured: Mapping[str, Floats], lessons: Lessons
) -> dict[str, Floats]:
    """Return measured over predicted (N,) by metric, each row predicted by a correction that had not seen it.

    Up to 10 rows are left out one at a time, more in 10 parts; nan where nothing was measured or the prediction is
    saturated.
    """
    ratios = {metric: np.full(len(rows), np.nan) for metric in METRICS}
    fold = np.random.default_rng(_SEED).permutation(len(rows)) % _FOLDS
    for one in np.unique(fold):
        held, kept = np.flatnonzero(fold == one), np.flatnonzero(fold != one)
        found = correct(prior, pick(rows, kept), {m: measured[m][kept] for m in METRICS}, lessons)
        predicted = found.predict(prior, pick(rows, held))
        for metric in METRICS:
            ratios[metric][held] = np.where(np.isfinite(predicted[metric]), measured[metric][held], np.nan)
            ratios[metric][held] /= predicted[metric]
    return ratios


def pick(rows: Sequence[Load], index: Ints) -> tuple[Load, ...]:
    """Return the rows at `index`."""
    return tuple(rows[n] for n in index)


def _tpot(prior: LoopsPrior, rows: Sequence[Load], measured: Floats, lessons: Lessons) -> Correction:
    """Correct TPOT: a sum of parts in closed loops, a serving model that is run again in open ones."""
    parts = prior(rows)["tpot"]
    known = np.flatnonzero(~np.isnan(measured))
    chosen = pick(rows, known)
    if not any(isinstance(row, OpenLoad) for row in chosen):
        return _finite_only(parts, measured, lessons, "tpot")
    return correct_tpot(prior, chosen, measured[known], lessons.get("tpot") or Lesson.none(parts))


def _finite_only(parts: Parts, measured: Floats, lessons: Lessons, metric: str) -> Correction:
    finite: Bools = np.asarray(np.isfinite(parts.seconds).all(axis=1))
    known = np.flatnonzero(finite & ~np.isnan(measured))
    return correction(parts.take(known), measured[known], lessons.get(metric), leave_out=False)


def _total(found: Correction, parts: Parts) -> Floats:
    """Return the corrected totals; a coefficient of 0 does not make an infinite part finite."""
    finite: Bools = np.asarray(np.isfinite(parts.seconds).all(axis=1))
    seconds = replace(parts, seconds=np.where(finite[:, None], parts.seconds, 0.0))
    return np.where(finite, found.apply(seconds).total, np.inf)
