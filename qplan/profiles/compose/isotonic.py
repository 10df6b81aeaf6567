"""Make iteration times rise with batch and length, as they must, by the smallest change that does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Repair:
    """What :func:`repair` changed.

    Attributes
    ----------
    points, changed, changed_over_5_percent
        Times there were, those that changed at all and those that changed by more than 5 %.
    largest_change
        Largest relative change.
    """

    points: int
    changed: int
    changed_over_5_percent: int
    largest_change: float


def repair(times: Floats) -> tuple[Floats, Repair]:
    """Return the closest times that never fall along the last two axes, and what had to change.

    Kernel times have outliers and kernels switch with size, so that sums of them fall here and there. Closest
    means the smallest largest relative change: the geometric mean of the running maximum and of the running
    minimum from the far end, which is the isotonic regression in the maximum norm of the logarithms.

    Parameters
    ----------
    times : (..., A, B)
        Positive; NaN where there is no time, and then also at every larger index of either axis.
    """
    highest, lowest = times, times
    for axis in (-2, -1):
        highest = np.fmax.accumulate(highest, axis=axis)
        lowest = np.flip(np.fmin.accumulate(np.flip(lowest, axis), axis=axis), axis)
    known = ~np.isnan(times)
    rises = highest == lowest
    risen = np.where(known, np.where(rises, times, np.sqrt(highest * lowest)), np.nan)
    change = np.abs(risen[known] / times[known] - 1)
    report = Repair(
        points=int(known.sum()),
        changed=int((change > 0).sum()),
        changed_over_5_percent=int((change > 0.05).sum()),
        largest_change=round(float(change.max(initial=0.0)), 4),
    )
    return risen, report
