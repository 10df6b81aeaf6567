"""What other systems taught: where coefficients lie, and how far systems differ.

One family is one measured system: GPU, model, quantization, tensor parallelism, engine and version. Each family is
fitted alone, held loosely to the prior's own coefficients. The lesson is the median of the families, coefficient by
coefficient (their mean would charge everyone for what one engine does), and their spread around it, to which the doubt
of each family's fit is added (the between and within parts of empirical Bayes; Morris 1983).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qplan.core.errors import InputError
from qplan.models.calibration.fit import fit
from qplan.models.calibration.parts import Parts
from qplan.models.steptimes import Floats

_NOISE = 0.05  # of a run, on a log scale, as long as no family has told
_LEAST_NOISE = 0.03
_LEAST_SPREAD = 0.1  # of the prior's own deviation: a few families make nobody more certain than that
_NORMAL = 0.6745  # median of |x| of a standard normal
SHIPPED = Path(__file__).parent / "lessons.json"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is known of a metric's coefficients before a system's first point.

    Attributes
    ----------
    names, mean, deviation : K
        Parts, and the normal distribution of their coefficients over systems.
    noise
        Scatter of one run around a family's own fit, on a log scale.
    factor_deviation, factor_noise
        On a log scale: standard deviation over systems of measured over predicted, and the scatter of one run around
        its system's.
    families
        How many taught it.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    noise: float
    factor_deviation: float
    factor_noise: float
    families: int

    @classmethod
    def none(cls, parts: Parts) -> Lesson:
        """Return the lesson of nobody: the prior's own coefficients and deviations."""
        own, deviation = tuple(parts.own.tolist()), tuple(parts.deviation.tolist())
        return cls(parts.names, own, deviation, _NOISE, 1.0, _NOISE, 0)

    def of(self, parts: Parts) -> tuple[Floats, Floats]:
        """Return mean and deviation of the coefficients of `parts`, (K,) each; the prior's own for parts not taught."""
        taught = dict(zip(self.names, zip(self.mean, self.deviation, strict=True), strict=True))
        own = zip(parts.own.tolist(), parts.deviation.tolist(), strict=True)
        pairs = np.array([taught.get(name, pair) for name, pair in zip(parts.names, own, strict=True)])
        return pairs[:, 0], pairs[:, 1]

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Lesson:
        """Read what :func:`dataclasses.asdict` made of a lesson; raise :class:`InputError` for anything else."""
        try:
            lesson = cls(
                tuple(map(str, data["names"])),
                tuple(map(float, data["mean"])),
                tuple(map(float, data["deviation"])),
                float(data["noise"]),
                float(data["factor_deviation"]),
                float(data["factor_noise"]),
                int(data["families"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"lessons of a calibration: not a lesson: {error!r}") from None
        scales = (*lesson.deviation, lesson.noise, lesson.factor_deviation, lesson.factor_noise)
        if not len(lesson.names) == len(lesson.mean) == len(lesson.deviation) or not np.isfinite(lesson.mean).all():
            raise InputError("lessons of a calibration: expected a finite mean and a deviation for each name")
        if min(lesson.mean) < 0 or not np.isfinite(scales).all() or min(scales) <= 0:
            raise InputError("lessons of a calibration: means must be 0 or more, deviations and noises positive")
        return lesson


Lessons = Mapping[str, Lesson]


def learn(families: Sequence[tuple[Parts, Floats]]) -> Lesson:
    """Learn the lesson of one metric.

    Parameters
    ----------
    families
        Parts and measured seconds (N,) of each; all parts have the same names.

    Raises
    ------
    InputError
        There is no family, or their parts differ.
    """
    if not families:
        raise InputError("no family to learn a calibration from")
    first = families[0][0]
    if any(parts.names != first.names for parts, _ in families):
        raise InputError(f"families with other parts than {', '.join(first.names)} cannot teach the same lesson")
    fits = [fit(parts.seconds, measured, first.own, first.deviation, _NOISE) for parts, measured in families]
    coefficients, doubts = (np.array(each) for each in zip(*fits, strict=True))
    mean = np.median(coefficients, axis=0)
    between, within = ((coefficients - mean) ** 2).mean(axis=0), (doubts**2).mean(axis=0)
    deviation = np.sqrt(between + within + (_LEAST_SPREAD * first.deviation) ** 2)
    noise = [_scatter(p.seconds @ own / y) for (p, y), own in zip(families, coefficients, strict=True)]
    ratios = [measured / (parts.seconds @ mean) for parts, measured in families]
    factors = np.array([np.median(ratio) for ratio in ratios])
    apart = float(np.sqrt(np.mean(np.log(factors) ** 2)))
    return Lesson(
        first.names,
        tuple(mean.tolist()),
        tuple(deviation.tolist()),
        max(float(np.mean(noise)), _LEAST_NOISE),
        max(apart, _LEAST_SPREAD),
        max(float(np.mean([_scatter(r / f) for r, f in zip(ratios, factors, strict=True)])), _LEAST_NOISE),
        len(families),
    )


def _scatter(ratio: Floats) -> float:
    """Return a robust standard deviation of the logarithm of ratios around 1."""
    return float(np.median(np.abs(np.log(ratio)))) / _NORMAL


def to_data(lessons: Lessons) -> dict[str, Any]:
    """Return plain numbers and lists, by metric."""
    return {metric: asdict(lesson) for metric, lesson in lessons.items()}


def from_data(data: Mapping[str, Any]) -> dict[str, Lesson]:
    """Read what :func:`to_data` wrote; raise :class:`InputError` for anything else."""
    if not isinstance(data, Mapping) or not all(isinstance(lesson, Mapping) for lesson in data.values()):
        raise InputError("lessons of a calibration: expected a lesson by metric")
    return {str(metric): Lesson.from_data(lesson) for metric, lesson in data.items()}


@cache
def shipped_lessons() -> Lessons:
    """Return the lessons that ``python -m qplan.models.calibration.teach`` made of public closed-loop runs."""
    return from_data(json.loads(SHIPPED.read_text(encoding="utf-8"))["lessons"])
