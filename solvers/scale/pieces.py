"""Parts of a program that can be solved on their own.

Demand and capacity rows tie columns together for good. Other rows (an inventory, a power cap, a quality average)
often have slack: left out, the program may fall apart into pieces whose optima add up. What is left out is a
relaxation, so the sum of the pieces' bounds holds for the whole; whether their solutions add up to one of the whole is
for the caller to check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import MatrixProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.scale.structure import Structure

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some columns of a program, with the rows that are theirs alone.

    Attributes
    ----------
    columns : ndarray of int
        The piece's columns in the whole program.
    program
        The piece's own program.
    """

    columns: Indices
    program: MatrixProgram


def restricted(program: MatrixProgram, kept: NDArray[np.bool_]) -> Piece:
    """Return the program over the columns marked, the others at zero. Rows that this leaves empty and true go."""
    columns = np.flatnonzero(kept)
    position = np.full(len(kept), -1)
    position[columns] = np.arange(len(columns))
    inside = kept[program.indices]
    length = np.diff(program.indptr)
    row_of = np.repeat(np.arange(len(length)), length)
    left = np.bincount(row_of[inside], minlength=len(length))
    rows = (left > 0) | (program.row_lower > 0) | (program.row_upper < 0)
    part = MatrixProgram(
        cost=program.cost[columns],
        lower=program.lower[columns],
        upper=program.upper[columns],
        integer=program.integer[columns],
        names=("",) * len(columns),
        row_lower=program.row_lower[rows],
        row_upper=program.row_upper[rows],
        indptr=np.concatenate([[0], np.cumsum(left[rows])]).astype(np.int32),
        indices=position[program.indices[inside]].astype(np.int32),
        data=program.data[inside],
    )
    return Piece(columns, part)


def without_fixed(program: MatrixProgram) -> tuple[Piece, Floats]:
    """Return the program over the columns that are not fixed, and a point with the values of those that are.

    The rows' bounds take over what the fixed columns contribute, the objective leaves it out.
    """
    fixed = program.lower == program.upper
    values = np.where(fixed, program.lower, 0.0)
    length = np.diff(program.indptr)
    row_of = np.repeat(np.arange(len(length)), length)
    held = np.bincount(row_of, weights=program.data * values[program.indices], minlength=len(length))
    inside = program.data != 0
    ends = np.concatenate([[0], np.cumsum(np.bincount(row_of[inside], minlength=len(length)))])
    moved = replace(
        program,
        row_lower=program.row_lower - held,
        row_upper=program.row_upper - held,
        indptr=ends.astype(np.int32),
        indices=program.indices[inside],
        data=program.data[inside],
    )
    return restricted(moved, ~fixed), values


def without_rows(program: MatrixProgram, dropped: NDArray[np.bool_]) -> MatrixProgram:
    """Return the program without the rows marked."""
    length = np.diff(program.indptr)
    inside = np.repeat(~dropped, length)
    return replace(
        program,
        row_lower=program.row_lower[~dropped],
        row_upper=program.row_upper[~dropped],
        indptr=np.concatenate([[0], np.cumsum(length[~dropped])]).astype(np.int32),
        indices=program.indices[inside],
        data=program.data[inside],
    )


def loose_pieces(program: MatrixProgram, structure: Structure) -> tuple[list[Piece], NDArray[np.bool_]]:
    """Split a program by its demand and capacity rows.

    Returns
    -------
    list of Piece
        Largest first; together they hold every column.
    ndarray of bool, shape (R,)
        The rows left out: those with columns of several pieces.
    """
    essential = structure.essential
    piece = components(len(program.cost), structure.row_of[essential], program.indices[essential].astype(np.int64))
    least, most = np.full(len(program.row_lower), len(program.cost)), np.full(len(program.row_lower), -1)
    np.minimum.at(least, structure.row_of, piece[program.indices])
    np.maximum.at(most, structure.row_of, piece[program.indices])
    linking = least < most
    sizes = np.bincount(piece)
    piece = np.where(sizes[piece] == 1, -1, piece)  # columns without demand or capacity rows form one piece
    least = np.where(least < len(piece), piece[np.minimum(least, len(piece) - 1)], -1)
    labels = np.unique(piece)
    return [
        restricted(without_rows(program, linking | (least != label)), piece == label)
        for label in labels[np.argsort(-sizes[labels], kind="stable")]
    ], linking


def components(n_columns: int, row_of: Indices, columns: Indices) -> Indices:
    """Return a label for each column, the same for columns that rows connect: the least column of them."""
    label = np.arange(n_columns)
    if not len(row_of):
        return label
    n_rows = int(row_of.max()) + 1
    while True:
        of_row = np.full(n_rows, n_columns)
        np.minimum.at(of_row, row_of, label[columns])
        lower = label.copy()
        np.minimum.at(lower, columns, of_row[row_of])
        lower = lower[lower]  # a label's own label is lower still
        if (lower == label).all():
            return label
        label = lower
