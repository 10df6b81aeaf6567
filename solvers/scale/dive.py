"""A first solution from a chain of linear programs: round one kind of replicas up, let the rest adapt, and again.

Replicas that are paid for draw load from those that are not, so most fractions fall to zero on the way. At the end each
kind is tried with one replica fewer, the dearest first. (Diving as in Berthold, "Primal Heuristics for Mixed Integer
Programs", diploma thesis, TU Berlin, 2006, section 3.2; rounding up keeps capacity rows feasible.)
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends.highs import pass_model

if TYPE_CHECKING:
    import highspy
    from numpy.typing import NDArray

    from qplan.solvers.backends import MatrixProgram

    Floats = NDArray[np.float64]

_FRACTION = 1e-6


def dive(program: MatrixProgram, deadline: float) -> Floats | None:
    """Return a point that is feasible but for rounding, integer columns whole; None if rounding up leads nowhere."""
    import highspy

    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    pass_model(highs, replace(program, integer=np.zeros_like(program.integer)))
    whole = np.flatnonzero(program.integer)
    values = _solved(highs, deadline)
    while values is not None:
        part = values[whole] - np.floor(values[whole] + _FRACTION)
        place = int(part.argmax())
        if part[place] <= _FRACTION:
            break
        column = int(whole[place])
        highs.changeColBounds(column, np.ceil(values[column]), program.upper[column])
        adapted = _solved(highs, deadline)
        if adapted is None:
            values[whole] = np.ceil(values[whole] - _FRACTION)
            return values
        values = adapted
    return None if values is None else _fewer(highs, program, whole, values, deadline)


def _fewer(
    highs: highspy.Highs, program: MatrixProgram, whole: NDArray[np.int64], values: Floats, deadline: float
) -> Floats:
    """Return the solution after taking away, one at a time, the replicas that the others can do without."""
    best, cost = values, float(program.cost @ values)
    counts = np.round(values[whole])
    for place in np.argsort(-program.cost[whole], kind="stable").tolist():
        column = int(whole[place])
        highs.changeColBounds(column, counts[place], counts[place])
    for place in np.argsort(-program.cost[whole], kind="stable").tolist():
        column = int(whole[place])
        while counts[place] > program.lower[column]:
            highs.changeColBounds(column, counts[place] - 1, counts[place] - 1)
            found = _solved(highs, deadline)
            if found is None or program.cost @ found >= cost:
                highs.changeColBounds(column, counts[place], counts[place])
                break
            counts[place] -= 1
            best, cost = found, float(program.cost @ found)
    best = best.copy()
    best[whole] = counts
    return best


def _solved(highs: highspy.Highs, deadline: float) -> Floats | None:
    import highspy

    left = deadline - time.perf_counter()
    if left <= 0:
        return None
    highs.setOptionValue("time_limit", highs.getRunTime() + left)
    highs.run()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return np.array(highs.getSolution().col_value)
