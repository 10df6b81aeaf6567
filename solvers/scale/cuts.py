"""Residual capacity inequalities: what whole replicas imply for the loads on them.

For a capacity row ``sum_j load[j] x[j] <= n`` with ``0 <= x <= 1`` and whole ``n``, and any subset S of its loads
with total ``L`` and fraction ``r = L - floor(L)``::

    sum over S of load[j] (1 - x[j])  >=  r (ceil(L) - n)

(Magnanti, Mirchandani and Vachani, "The convex hull of two core capacitated network design problems", Mathematical
Programming 60, 1993, section 3.) With the row itself and the bounds they describe the convex hull, and the subset
``S = {j : x[j] > n - floor(n)}`` is the one to try: it is violated if any is (Atamtürk and Rajan, "On splittable and
unsplittable flow capacitated network design arc-set polyhedra", Mathematical Programming 92, 2002, section 2). With one
load below a replica the inequality is ``x <= n``: who serves anything must be up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.scale.capacities import Capacities

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

#: By how many replicas an inequality must be broken to be worth a row.
_BROKEN = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """Rows ``sum data * column >= lower``, in compressed sparse rows over a program's columns.

    Attributes
    ----------
    lower : ndarray of shape (n,)
    indptr, indices, data : ndarray of shape (n + 1,), (nnz,), (nnz,)
    """

    lower: Floats
    indptr: Indices
    indices: Indices
    data: Floats

    def __len__(self) -> int:
        return len(self.lower)

    @classmethod
    def none(cls) -> Cuts:
        """No cuts."""
        return cls(np.empty(0), np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0))

    def and_(self, more: Cuts) -> Cuts:
        """Return both."""
        return Cuts(
            np.concatenate([self.lower, more.lower]),
            np.concatenate([self.indptr, self.indptr[-1] + more.indptr[1:]]),
            np.concatenate([self.indices, more.indices]),
            np.concatenate([self.data, more.data]),
        )

    def only(self, kept: NDArray[np.bool_]) -> Cuts:
        """Return those marked."""
        length = np.diff(self.indptr)
        inside = np.repeat(kept, length)
        ends = np.concatenate([[0], np.cumsum(length[kept])])
        return Cuts(self.lower[kept], ends, self.indices[inside], self.data[inside])

    @property
    def row_of(self) -> Indices:
        """Cut of each coefficient."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))


def broken_cuts(capacities: Capacities, values: Floats) -> Cuts:
    """Return the residual capacity inequalities that a point breaks, one for each capacity at most."""
    c = capacities
    replicas = np.bincount(c.whole_row, weights=c.multiple * values[c.whole_column], minlength=len(c))
    fraction = replicas - np.floor(replicas + 1e-9)
    part = np.bincount(c.of_part, weights=c.per_unit * values[c.column], minlength=len(c.row))
    chosen = (part > fraction[c.row] + 1e-9) & (c.load > 0)
    row, load = c.row[chosen], c.load[chosen]
    total = np.bincount(row, weights=load, minlength=len(c))
    residue = total - np.floor(total)
    short = residue * (np.ceil(total) - replicas)
    short -= np.bincount(row, weights=load * (1 - part[chosen]), minlength=len(c))
    broken = (short > _BROKEN) & (residue > 1e-6) & (residue < 1 - 1e-9)
    if not broken.any():
        return Cuts.none()

    # sum over S of load * part  -  residue * replicas  <=  L - residue * ceil(L), with its sign turned
    entries = (chosen & broken[c.row])[c.of_part]
    of_part, wholes = c.of_part[entries], broken[c.whole_row]
    position = np.cumsum(broken) - 1
    rows = np.concatenate([position[c.row[of_part]], position[c.whole_row[wholes]]])
    columns = np.concatenate([c.column[entries], c.whole_column[wholes]])
    data = np.concatenate([-c.load[of_part] * c.per_unit[entries], residue[c.whole_row[wholes]] * c.multiple[wholes]])
    order = np.argsort(rows, kind="stable")
    count = int(broken.sum())
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    lower = np.asarray((residue * np.ceil(total) - total)[broken], float)
    return Cuts(lower, ends, columns[order], data[order])
