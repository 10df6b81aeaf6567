"""What of a matrix program its rows give away: which columns share a demand, which rows hold whole replicas.

Two kinds of rows carry the structure of a fleet. A *demand* row is an equality over continuous columns that
are not negative: each of them stands for a part of the same demand, so none exceeds it. A *capacity* row holds
continuous loads below whole replicas::

    sum_j load[j] * column[j] <= sum_i multiple[i] * whole[i]       (multiples are whole too)

Both are read from the coefficients, so any program that has such rows is served, whoever built it. Zero coefficients
and fixed columns are expected to be gone (:func:`qplan.solvers.scale.pieces.without_fixed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import MatrixProgram

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

#: How far a ratio of two coefficients may be from a whole number to count as one.
_WHOLE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """Demand and capacity rows of a program with C columns and R rows.

    Attributes
    ----------
    row_of : ndarray of int, shape (nnz,)
        Row of each coefficient of the program.
    upper : ndarray of shape (C,)
        Upper bounds of the columns, those that rows imply included.
    demand : ndarray of int, shape (C,)
        A demand row of each continuous column; -1 where it is in none.
    full : ndarray of shape (C,)
        What the column would be if it met that demand alone; infinite where it has none.
    load_row, load_column : ndarray of int, shape (L,)
        Capacity row and column of each load.
    load : ndarray of shape (L,)
        Replicas that the column takes at its upper bound.
    whole_row, whole_column : ndarray of int, shape (W,)
        Capacity row and column of each kind of replica.
    multiple : ndarray of shape (W,)
        Replicas for which one of the column counts.
    """

    row_of: Indices
    upper: Floats
    demand: Indices
    full: Floats
    load_row: Indices
    load_column: Indices
    load: Floats
    whole_row: Indices
    whole_column: Indices
    multiple: Floats

    @property
    def essential(self) -> NDArray[np.bool_]:
        """Which of the program's coefficients stand in demand or capacity rows. Shape (nnz,)."""
        rows = np.concatenate([self.demand[self.demand >= 0], self.whole_row])
        marked = np.zeros(self.row_of[-1] + 1 if len(self.row_of) else 0, bool)
        marked[rows] = True
        return np.asarray(marked[self.row_of])


def read_structure(program: MatrixProgram) -> Structure:
    """Find the demand and capacity rows of `program`."""
    n_rows = len(program.row_lower)
    row_of = np.repeat(np.arange(n_rows), np.diff(program.indptr))
    column, value = program.indices.astype(np.int64), program.data
    upper = _implied_upper(program, row_of)
    continuous = ~program.integer[column] & (program.lower[column] >= 0)
    demand = np.full(len(program.cost), -1)
    equal = (program.row_lower == program.row_upper) & _all_of(row_of, continuous & (value > 0), n_rows)
    inside = equal[row_of]
    demand[column[inside]] = row_of[inside]
    full = np.full(len(program.cost), np.inf)
    full[column[inside]] = program.row_lower[row_of[inside]] / value[inside]

    unit = _unit(program, row_of)
    of_capacity = (unit > 0)[row_of]
    loads = of_capacity & (value > 0) & continuous & np.isfinite(upper[column])
    wholes = of_capacity & _multiple(value, unit[row_of]) & program.integer[column]
    return Structure(
        row_of=row_of,
        upper=upper,
        demand=demand,
        full=full,
        load_row=row_of[loads],
        load_column=column[loads],
        load=value[loads] * upper[column[loads]] / unit[row_of[loads]],
        whole_row=row_of[wholes],
        whole_column=column[wholes],
        multiple=-value[wholes] / unit[row_of[wholes]],
    )


def _implied_upper(program: MatrixProgram, row_of: Indices) -> Floats:
    """Return column bounds, tightened by the rows in which nothing can make up for too much of a column."""
    column, value, right = program.indices, program.data, program.row_upper
    harmless = (value > 0) & (program.lower[column] >= 0)
    packing = _all_of(row_of, harmless, len(right)) & np.isfinite(right)
    inside = packing[row_of]
    upper = program.upper.copy()
    most = np.maximum(right[row_of[inside]], 0.0) / value[inside]
    np.minimum.at(upper, column[inside], most)
    upper = np.where(program.integer, np.floor(upper + 1e-6), upper)
    return np.maximum(upper, program.lower)


def _unit(program: MatrixProgram, row_of: Indices) -> Floats:
    """Return what one replica gives in each capacity row, the least of its kinds; 0 for the other rows.

    A row qualifies if all that it takes is not negative, all that it gives is whole, and it has both. Whole
    columns that take something other than whole replicas only make the row weaker, which is allowed.
    """
    column, value = program.indices, program.data
    n_rows = len(program.row_upper)
    gives = value < 0
    given = np.full(n_rows, np.inf)
    np.minimum.at(given, row_of[gives], -value[gives])
    given[~np.isfinite(given)] = 0.0
    fine = (value > 0) & (program.lower[column] >= 0)
    fine |= gives & program.integer[column] & _multiple(value, given[row_of])
    takes = np.bincount(row_of, weights=(value > 0) & ~program.integer[column], minlength=n_rows) > 0
    capacity = (np.abs(program.row_upper) <= 1e-12) & takes & _all_of(row_of, fine, n_rows)
    return np.where(capacity, given, 0.0)


def _multiple(value: Floats, unit: Floats) -> NDArray[np.bool_]:
    ratio = np.divide(value, unit, out=np.full(len(value), 0.5), where=unit > 0)
    return np.asarray(np.abs(ratio - np.round(ratio)) <= _WHOLE * np.maximum(1.0, np.abs(ratio)))


def _all_of(row_of: Indices, good: NDArray[np.bool_], n_rows: int) -> NDArray[np.bool_]:
    """Return for each row whether all of its coefficients are `good`."""
    every = np.ones(n_rows, bool)
    every[row_of[~good]] = False
    return every
