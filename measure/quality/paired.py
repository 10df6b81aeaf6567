"""Intervals of a score, and of its change against a baseline on the same items.

A quantized model and its baseline answer the same items, and most of the spread is between items. Differences are
therefore always taken item by item; comparing two separate intervals would hide any change smaller than that spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist, fmean, stdev

from qplan.measure.quality.results import Item, Score

CONFIDENCE = 0.95


def item_score(metric: str, items: Sequence[Item], baseline: Sequence[Item] | None) -> Score:
    """Average the items' scores and pair them with those of the baseline.

    Items without a score are left out, of a pair both. Scores that are all 0 or 1 get intervals of proportions:
    Wilson's for the score, Tango's for the change, and McNemar's exact test; any other scores get Student's.
    """
    scored = {item.id: item.score for item in items if item.score is not None}
    if not scored:
        return Score(metric, None, reason=next((item.error for item in items if item.error), "no items"))
    values = list(scored.values())
    low: float | None
    high: float | None
    low, high = wilson(sum(values), len(values)) if _binary(values) else student(values)
    if baseline is None:
        return Score(metric, fmean(values), low, high, len(values))
    reference = {item.id: item.score for item in baseline if item.score is not None}
    pairs = [(score, reference[key]) for key, score in scored.items() if key in reference]
    if not pairs:
        return Score(metric, fmean(values), low, high, len(values))
    p_value = change_low = change_high = None
    if _binary(value for pair in pairs for value in pair):
        gained = sum(now > before for now, before in pairs)
        lost = sum(now < before for now, before in pairs)
        change_low, change_high = tango(gained, lost, len(pairs))
        p_value = mcnemar(gained, lost)
    else:
        change_low, change_high = student([now - before for now, before in pairs])
    return Score(
        metric,
        fmean(values),
        low,
        high,
        len(values),
        baseline_score=fmean(before for _, before in pairs),
        change=fmean(now - before for now, before in pairs),
        change_low=change_low,
        change_high=change_high,
        p_value=p_value,
    )


def student(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Student's interval of a mean; ``None`` twice with fewer than two values."""
    if len(values) < 2:
        return None, None
    half = student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def clustered(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the interval of the mean of all values when whole groups of them were drawn, two or more.

    The variance of a ratio estimator (Cochran, Sampling Techniques, 3rd ed., section 9A.1), with Student's quantile for
    one degree of freedom less than there are groups.
    """
    count = sum(len(group) for group in groups)
    mean = sum(sum(group) for group in groups) / count
    squares = sum((sum(group) - len(group) * mean) ** 2 for group in groups)
    error = math.sqrt(squares * len(groups) / (len(groups) - 1)) / count
    half = student_quantile(len(groups) - 1) * error
    return mean - half, mean + half


def student_quantile(freedom: int) -> float:
    """Return the quantile of Student's t at 97.5 %.

    Exact for 1 and 2 degrees of freedom, else the expansion 26.7.5 of Abramowitz and Stegun, good to 0.3 % from 3 on.
    """
    p = 0.5 + CONFIDENCE / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def tango(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Return Tango's score interval of the difference of two paired proportions.

    Unlike the interval from the spread of the differences it keeps a width when no item changed, and covers at small
    counts (Tango, Statistics in Medicine 17:891, 1998).

    Parameters
    ----------
    gained, lost
        Items right only now, and right only in the baseline.
    count
        All items.
    """
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    estimate = (gained - lost) / count

    def statistic(change: float) -> float:
        """How many standard errors the estimate lies above `change`, at the most likely nuisance parameter."""
        linear = -gained - lost + (2 * count - gained + lost) * change
        constant = -lost * change * (1 - change)
        nuisance = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
        variance = count * (2 * nuisance + change * (1 - change))
        distance = gained - lost - count * change
        if distance == 0.0:
            return 0.0
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    low = _crossing(lambda change: statistic(change) - z, -1.0, estimate)
    high = _crossing(lambda change: statistic(change) + z, estimate, 1.0)
    return low, high


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that an item is as likely gained as lost."""
    discordant = gained + lost
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1)) * 0.5**discordant
    return min(1.0, 2 * tail)


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function crosses zero, by bisection; an end where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _binary(values: Iterable[float]) -> bool:
    return all(value in (0.0, 1.0) for value in values)
