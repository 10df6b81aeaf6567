"""Sequential statistics of misses that come in bursts.

Requests that wait behind the same queue miss together, so `n` requests in a row tell less than `n` independent ones.
:func:`decorrelation` says how many requests are worth one; :func:`verdict` may then be asked after every request: its
error stays below the one allowed however often it looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

from qplan.measure.load.requests import Floats

_REACHES = 16


class Verdict(Enum):
    """What a probe says of its rate."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    UNCLEAR = "unclear"


def decorrelation(series: Sequence[Floats], variance: float, fewest: int = 10) -> tuple[float, int]:
    """Return how many successive values carry as much as one independent value, and the degrees of freedom of that.

    Batch means: the mean of `b` values has the variance ``decorrelation * variance / b`` once `b` is well beyond the
    correlation's reach. The reach is not known, so batches are doubled until they are several times as long as it, or
    too few are left to see a variance, and the largest answer is taken.

    Parameters
    ----------
    series
        Values in order of arrival, a series for each probe; each is compared with its own mean.
    variance
        Variance of a single value.
    fewest
        Degrees of freedom below which batches grow no longer. A series with a trend comes out as about so many
        independent values, however long it is.

    Returns
    -------
    tuple[float, int]
        At least 1, and the number of batches behind it less the number of means.
    """
    largest, freedom, size = 1.0, fewest, 4
    while True:
        squares, degrees = 0.0, 0
        for values in series:
            count = len(values) // size
            if count > 2:
                sums = values[: count * size].reshape(count, size).sum(axis=1)
                squares += float(sums @ sums) - float(sums.sum()) ** 2 / count
                degrees += count - 1
        if degrees < fewest or size > _REACHES * largest:
            return largest, freedom
        found = squares / degrees / size / variance
        if found >= largest:
            largest, freedom = found, degrees
        size *= 2


def verdict(misses: float, requests: float, allowed: float, confidence: float) -> Verdict:
    """Test whether the share of misses is below or above `allowed`.

    A mixture martingale (Robbins 1970): the likelihood of the data under a Beta mixture of miss shares over their
    likelihood at `allowed`. If `allowed` is the truth, it ever exceeds ``1 / error`` with probability at most `error`.

    Parameters
    ----------
    misses, requests
        Effective counts: requests over their decorrelation.
    allowed
        Share of misses that still passes, between 0 and 1.
    confidence
        Of the verdict, whenever it is asked.
    """
    if requests <= 0:
        return Verdict.UNCLEAR
    prior = (0.5, 0.5)
    hits = requests - misses
    mixture = _log_beta(prior[0] + misses, prior[1] + hits) - _log_beta(*prior)
    null = misses * math.log(allowed) + hits * math.log1p(-allowed)
    if mixture - null < -math.log(1 - confidence):
        return Verdict.UNCLEAR
    return Verdict.FAIL if misses > allowed * requests else Verdict.PASS


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
