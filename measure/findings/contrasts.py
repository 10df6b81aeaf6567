"""Comparisons of measured points, and whether they are beyond the spread of repeats.

A comparison is a linear form over the logarithms of measured points: the ratio of two points, of means of several, or
of values between points (interpolated log-log), each point with a coefficient. With the standard deviation ``s_i`` that
repeats show (pooled over the points that were repeated, those at low rates and those at high rates apart) its standard
error is ``sqrt(sum s_i^2 c_i^2 / n_i)``, ``n_i`` repeats of point ``i``, and Student's t gives the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qplan.core.errors import InputError
from qplan.measure.findings.points import LoadPoint

LEVEL = 0.95


class Verdict(StrEnum):
    """What a comparison says of a claim."""

    HOLDS = "holds"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Pooled:
    """How far repeats of a point lie apart, pooled over some points.

    Attributes
    ----------
    log_sd
        Standard deviation of the logarithm of one run; NaN where nothing was repeated.
    freedom
        Degrees of freedom: repeats beyond the first of each point.
    points
        Points that were repeated.
    """

    log_sd: float
    freedom: int
    points: int

    @classmethod
    def of(cls, points: Iterable[LoadPoint], metric: str) -> Pooled:
        """Pool the repeats of `points`."""
        squares, freedom, repeated = 0.0, 0, 0
        for point in points:
            values = np.log(point.values.get(metric, ()))
            if len(values) > 1:
                squares += float(((values - values.mean()) ** 2).sum())
                freedom += len(values) - 1
                repeated += 1
        return cls(math.sqrt(squares / freedom) if freedom else math.nan, freedom, repeated)


@dataclass(frozen=True, slots=True)
class Spread:
    """How far repeats lie apart in one metric: at the lower half of the rates, and at the upper half.

    Where only one half was repeated, both are all of what was.
    """

    light: Pooled
    heavy: Pooled

    @classmethod
    def of(cls, points: Iterable[LoadPoint], metric: str) -> Spread:
        """Pool the repeats of `points` by half."""
        some = list(points)
        halves = [Pooled.of((point for point in some if point.light is light), metric) for light in (True, False)]
        if not all(half.freedom for half in halves):
            halves = [Pooled.of(some, metric)] * 2
        return cls(*halves)

    @property
    def known(self) -> bool:
        """Whether anything was repeated."""
        return self.light.freedom > 0

    def error(self, terms: Iterable[tuple[LoadPoint, float, int]]) -> tuple[float, float]:
        """Return the standard error of a linear form, and its degrees of freedom (Welch and Satterthwaite).

        Parameters
        ----------
        terms
            Point, coefficient, and repeats.
        """
        share = {True: 0.0, False: 0.0}
        for point, coefficient, count in terms:
            share[point.light] += coefficient**2 / count
        if self.light is self.heavy:
            return self.light.log_sd * math.sqrt(sum(share.values())), float(self.light.freedom)
        parts = [(half.log_sd**2 * share[half is self.light], half.freedom) for half in (self.light, self.heavy)]
        variance = sum(part for part, _ in parts)
        if not variance:
            return 0.0, float(self.light.freedom)
        return math.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts)


@dataclass(frozen=True, slots=True)
class Effect:
    """A ratio, with its interval by the spread of repeats; open where nothing was repeated."""

    value: float
    low: float
    high: float

    def verdict(self, threshold: float, *, above: bool) -> Verdict:
        """Judge the claim that the ratio lies above, or below, a threshold."""
        if self.low > threshold:
            return Verdict.HOLDS if above else Verdict.CONTRADICTED
        if self.high < threshold:
            return Verdict.CONTRADICTED if above else Verdict.HOLDS
        return Verdict.UNDECIDED


@dataclass(frozen=True, slots=True)
class Contrast:
    """A linear form over the logarithms of points: coefficients, in the order of the points.

    Two contrasts may name the same point: their sum and difference put its coefficients together.
    """

    points: tuple[LoadPoint, ...]
    coefficients: tuple[float, ...]

    @classmethod
    def at(cls, points: Sequence[LoadPoint], axis: Sequence[float], x: float) -> Contrast:
        """Return the value at `x` of the log-log interpolation through `points`, placed at rising `axis`."""
        right = min(max(int(np.searchsorted(axis, x)), 1), len(points) - 1)
        if axis[right - 1] == x or len(points) == 1:
            return cls((points[right - 1],), (1.0,))
        if axis[right] == x:
            return cls((points[right],), (1.0,))
        share = math.log(x / axis[right - 1]) / math.log(axis[right] / axis[right - 1])
        return cls((points[right - 1], points[right]), (1 - share, share))

    @classmethod
    def mean(cls, some: Sequence[Contrast]) -> Contrast:
        """Return the mean of contrasts."""
        total = some[0]
        for one in some[1:]:
            total = total + one
        return cls(total.points, tuple(c / len(some) for c in total.coefficients))

    def __add__(self, other: Contrast) -> Contrast:
        """Add two forms."""
        return self._with(other, 1.0)

    def __sub__(self, other: Contrast) -> Contrast:
        """Return the difference of two forms: the logarithm of a ratio."""
        return self._with(other, -1.0)

    def _with(self, other: Contrast, sign: float) -> Contrast:
        found = dict(zip(self.points, self.coefficients, strict=True))
        for point, coefficient in zip(other.points, other.coefficients, strict=True):
            found[point] = found.get(point, 0.0) + sign * coefficient
        return Contrast(tuple(found), tuple(found.values()))

    def effect(self, metric: str, spread: Spread, tests: int) -> Effect:
        """Return the ratio in `metric` with its interval, of a level that holds for `tests` of them at once.

        The level is Bonferroni's: 95 % for all of them together.
        """
        logs = [math.log(point.mean(metric)) for point in self.points]
        value = sum(c * log for c, log in zip(self.coefficients, logs, strict=True))
        if not spread.known:
            return Effect(math.exp(value), 0.0, math.inf)
        counts = (len(point.values[metric]) for point in self.points)
        error, freedom = spread.error(zip(self.points, self.coefficients, counts, strict=True))
        reach = _quantile(freedom, tests) * error
        return Effect(math.exp(value), math.exp(value - reach), math.exp(value + reach))


def _quantile(freedom: float, tests: int) -> float:
    """Return the quantile of Student's t that bounds `tests` two-sided intervals at once."""
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise InputError("findings need scipy: pip install 'qplan[models]'") from None
    return float(stdtrit(freedom, 1 - (1 - LEVEL) / (2 * tests)))
