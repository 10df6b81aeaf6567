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

    from qplan.solvers.scale.structure import Structure

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


def broken_cuts(structure: Structure, values: Floats) -> Cuts:
    """Return the residual capacity inequalities that a point breaks, one for each capacity row at most."""
    s = structure
    n_rows = int(s.whole_row.max(initial=-1)) + 1
    replicas = np.bincount(s.whole_row, weights=s.multiple * values[s.whole_column], minlength=n_rows)
    part = replicas - np.floor(replicas + 1e-9)
    share = values[s.load_column] / np.maximum(s.upper[s.load_column], 1e-300)
    chosen = (share > part[s.load_row] + 1e-9) & (s.load > 0)
    row, load = s.load_row[chosen], s.load[chosen]
    total = np.bincount(row, weights=load, minlength=n_rows)
    residue = total - np.floor(total)
    short = residue * (np.ceil(total) - replicas) - np.bincount(
        row, weights=load * (1 - share[chosen]), minlength=n_rows
    )
    broken = (short > _BROKEN) & (residue > 1e-6) & (residue < 1 - 1e-9)
    if not broken.any():
        return Cuts.none()

    # sum over S of load / upper * column  -  residue * replicas  <=  L - residue * ceil(L), with its sign turned
    loads, wholes = broken[row], broken[s.whole_row]
    position = np.cumsum(broken) - 1
    rows = np.concatenate([position[row[loads]], position[s.whole_row[wholes]]])
    columns = np.concatenate([s.load_column[chosen][loads], s.whole_column[wholes]])
    data = np.concatenate(
        [
            -load[loads] / s.upper[s.load_column[chosen][loads]],
            residue[s.whole_row[wholes]] * s.multiple[wholes],
        ]
    )
    order = np.argsort(rows, kind="stable")
    count = int(broken.sum())
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    lower = np.asarray((residue * np.ceil(total) - total)[broken], float)
    return Cuts(lower, ends, columns[order], data[order])
