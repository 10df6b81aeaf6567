"""Fleets that carry the demand after the loss of any one replica.

For any prices ``w >= 0`` of a busy replica, the demand takes at least its worth ``V(w) = sum_k min_d load[k, d] w[d]``
(:func:`~qplan.solvers.capacity.prices.demand_worth`), and a fleet ``n`` that carries it has ``w @ n >= V(w)``; if it
has it for every ``w``, it carries the demand (Farkas). After the loss of a replica of d that is
``w @ n - w[d] >= V(w)``. So each ``w`` cuts off the fleets that some loss breaks, for all d at once::

    w @ count - largest >= V(w) * scale        largest >= w[d] * used[d]  for every d

where ``used[d]`` is 1 if there are replicas of d. The program starts without cuts and gets those that its own
answers break: every program solved on the way is a relaxation, so the last one's bound and gap hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.capacity.prices import bottleneck, demand_worth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.capacity.program import CapacityProgram

#: Replicas that may be missing after a loss before it counts; above what solvers let a row be missed by.
_MISSING = 1e-5


def broken_by_a_loss(
    program: CapacityProgram, values: NDArray[np.float64], backend: SolverBackend
) -> list[NDArray[np.float64]]:
    """Return prices whose cuts rule out the fleet in `values`; none if it survives every loss.

    Parameters
    ----------
    values : ndarray
        A solution of ``program.matrix`` or of its relaxation; its demand scale counts. Of a fraction of a
        replica that fraction is lost.

    Returns
    -------
    list of ndarray of shape (D',)
        Replica prices, largest 1.
    """
    if values[program.scale] <= 0:
        return []  # no demand, nothing to lose
    load = program.problem.load[:, program.kept] * values[program.scale]
    counts, used = values[program.count], values[program.used]
    found: list[NDArray[np.float64]] = []
    for lost in np.flatnonzero(used > _MISSING):
        left = counts.copy()
        left[lost] -= used[lost]
        if any(_missing(load, left, prices / prices.sum()) > _MISSING for prices in found):
            continue  # a cut that is already on its way covers this loss too
        prices = bottleneck(load, left, backend)
        if _missing(load, left, prices) > _MISSING:
            found.append(prices / prices.max())
    return found


def with_cut(program: CapacityProgram, prices: NDArray[np.float64]) -> CapacityProgram:
    """Return the program that asks every fleet to be worth the demand at `prices` after any loss."""
    load = program.problem.load[:, program.kept]
    priced = np.flatnonzero(prices)
    largest = len(program.matrix.cost)
    rows = np.arange(len(priced))
    matrix = (
        program.matrix.with_columns([f"largest {largest}"])
        .with_row(
            np.concatenate([program.count[priced], [largest, program.scale]]),
            np.concatenate([prices[priced], [-1.0, -demand_worth(load, prices)]]),
            lower=0.0,
        )
        .with_rows(
            np.concatenate([rows, rows]),
            np.concatenate([np.full(len(priced), largest), program.used[priced]]),
            np.concatenate([np.ones(len(priced)), -prices[priced]]),
            np.zeros(len(priced)),
            np.full(len(priced), np.inf),
        )
    )
    return program.with_matrix(matrix)


def _missing(load: NDArray[np.float64], replicas: NDArray[np.float64], prices: NDArray[np.float64]) -> float:
    return demand_worth(load, prices) - float(replicas @ prices)
