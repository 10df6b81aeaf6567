"""What residual capacity inequalities are read from: capacity rows, and sums of those that are much alike.

Ten deployments at about the same price, each with a fraction of a replica, break no inequality of their own where
together they have one replica and a half. So the capacity rows of one *family* are added up, with each demand at the
least load that it has on any of them::

    sum over demands (least load) (part of the demand that the family serves) <= replicas of the family

Every sum of capacity rows implies this, whichever rows make up a family; those of about equal price are the ones that
the linear relaxation spreads its replicas over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.scale.pieces import components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import MatrixProgram
    from qplan.solvers.scale.structure import Structure

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

#: How far a price may be from the next in its family, as a factor.
_ALIKE = 1.03


@dataclass(frozen=True, slots=True, eq=False)
class Capacities:
    """N rows ``sum_p load[p] part[p] <= sum_i multiple[i] whole[i]`` over parts of demands, each from 0 to 1.

    Attributes
    ----------
    row, load : ndarray of shape (P,)
        Row of each part, and the replicas that it takes when it is 1.
    of_part, column, per_unit : ndarray of shape (E,)
        A part is a sum of columns: which part, which column, and how much one unit of the column counts for.
    whole_row, whole_column, multiple : ndarray of shape (W,)
        Row and column of each kind of replica, and for how many replicas one of it counts.
    """

    row: Indices
    load: Floats
    of_part: Indices
    column: Indices
    per_unit: Floats
    whole_row: Indices
    whole_column: Indices
    multiple: Floats

    def __len__(self) -> int:
        return int(self.whole_row.max(initial=-1)) + 1

    @classmethod
    def of(cls, program: MatrixProgram, structure: Structure) -> Capacities:
        """Return the capacity rows of a program, and their families."""
        s = structure
        own = cls(
            row=s.load_row,
            load=s.load,
            of_part=np.arange(len(s.load)),
            column=s.load_column,
            per_unit=1 / np.maximum(s.upper[s.load_column], 1e-300),
            whole_row=s.whole_row,
            whole_column=s.whole_column,
            multiple=s.multiple,
        )
        return own._and(_families(program, structure))

    def _and(self, more: Capacities) -> Capacities:
        return Capacities(
            row=np.concatenate([self.row, len(self) + more.row]),
            load=np.concatenate([self.load, more.load]),
            of_part=np.concatenate([self.of_part, len(self.row) + more.of_part]),
            column=np.concatenate([self.column, more.column]),
            per_unit=np.concatenate([self.per_unit, more.per_unit]),
            whole_row=np.concatenate([self.whole_row, len(self) + more.whole_row]),
            whole_column=np.concatenate([self.whole_column, more.whole_column]),
            multiple=np.concatenate([self.multiple, more.multiple]),
        )


def _families(program: MatrixProgram, structure: Structure) -> Capacities:
    """Return the sums of capacity rows that hold one kind of replica each, of about one price, for the same demands."""
    s = structure
    n_rows, n_columns = len(program.row_lower), len(program.cost)
    alone = np.bincount(s.whole_row, minlength=n_rows) == 1
    simple = alone[s.whole_row] & (s.multiple == 1) & (program.cost[s.whole_column] > 0)
    simple &= np.bincount(s.whole_column, minlength=n_columns)[s.whole_column] == 1
    whole_row, whole_column = s.whole_row[simple], s.whole_column[simple]

    label = components(n_columns, s.row_of[s.essential], program.indices[s.essential].astype(np.int64))
    price, group = program.cost[whole_column], label[whole_column]
    order = np.lexsort((price, group))
    apart = (np.diff(group[order]) != 0) | (price[order][1:] > _ALIKE * price[order][:-1])
    family = np.empty(len(order), np.int64)
    family[order] = np.concatenate([[0], np.cumsum(apart)])[: len(order)]
    several = np.bincount(family)[family] > 1
    _, family = np.unique(family[several], return_inverse=True)
    whole_row, whole_column = whole_row[several], whole_column[several]
    family_of_row = np.full(n_rows, -1)
    family_of_row[whole_row] = family

    once = np.bincount(s.load_column, minlength=n_columns)[s.load_column] == 1
    full = s.full[s.load_column]
    inside = once & (family_of_row[s.load_row] >= 0) & np.isfinite(full) & (full > 0)
    column, full = s.load_column[inside], full[inside]
    load = s.load[inside] * full / np.maximum(s.upper[column], 1e-300)
    part = family_of_row[s.load_row[inside]] * n_rows + s.demand[column]
    parts, of_part = np.unique(part, return_inverse=True)
    least = np.full(len(parts), np.inf)
    np.minimum.at(least, of_part, load)
    return Capacities(
        row=parts // n_rows,
        load=least,
        of_part=of_part,
        column=column,
        per_unit=1 / full,
        whole_row=family,
        whole_column=whole_column,
        multiple=np.ones(len(family)),
    )
