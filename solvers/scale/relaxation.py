"""The linear relaxation of a fleet program, made as strong and as small as its structure allows.

Columns of demand rows come when the duals price them in, so that of 10^6 pairs a few thousand are ever handed to the
simplex (column generation); the rows of :mod:`qplan.solvers.scale.cuts` come when a point breaks them. Whatever the
state of that, a set of duals proves a bound on the whole program, absent columns included: weak duality, with every
column at its better end. That bound and the reduced costs that go with it are all that is handed on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.scale.capacities import Capacities
from qplan.solvers.scale.cuts import Cuts, broken_cuts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import MatrixProgram
    from qplan.solvers.scale.structure import Structure

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

#: Pairs up to which all of them are handed over at once.
_FEW = 20_000
#: Pairs of each demand row to begin with, and to add at a time.
_FIRST, _MORE = 12, 4
#: Reduced cost below which an absent column is worth having, relative to the largest cost.
_PRICED_IN = 1e-9
#: Rounds of cuts that may pass without lifting the bound by as much as was asked.
_PATIENCE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Relaxed:
    """What the relaxation proved.

    Attributes
    ----------
    bound
        No feasible point of the program costs less; -inf where the duals prove nothing.
    values : ndarray of shape (C,)
        The relaxation's optimum, or the last point of it.
    reduced_cost : ndarray of shape (C,)
        At the duals of `bound`.
    row_dual : ndarray of shape (R,)
        The same duals.
    cuts
        The inequalities that hold it up.
    """

    bound: float
    values: Floats
    reduced_cost: Floats
    row_dual: Floats
    cuts: Cuts


def relax(program: MatrixProgram, structure: Structure, deadline: float, *, lift: float = 1e-4) -> Relaxed | None:
    """Solve the relaxation, cuts included, as far as time allows and cuts lift the bound by `lift` of itself.

    None if it is infeasible or without a bound, or no time is left to see.
    """
    simplex = _Simplex(program, structure)
    capacities = Capacities.of(program, structure)
    best: Relaxed | None = None
    stale = 0
    while simplex.solve(deadline):
        if time.perf_counter() < deadline and simplex.price():
            continue
        found = simplex.relaxed()
        lifted = best is None or found.bound > best.bound + lift * abs(best.bound)
        stale = 0 if lifted else stale + 1
        if best is None or found.bound >= best.bound:
            best = found
        if stale >= _PATIENCE or time.perf_counter() >= deadline:
            break
        cuts = broken_cuts(capacities, found.values)
        if not len(cuts):
            break
        simplex.cut(cuts)
    return best


class _Simplex:
    """The restricted relaxation in HiGHS: some of the columns, all of the rows, the cuts so far."""

    def __init__(self, program: MatrixProgram, structure: Structure) -> None:
        self.program, self.structure = program, structure
        self.cuts = Cuts.none()
        # Compressed sparse columns, to hand over columns by.
        self._order = np.argsort(program.indices, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(program.indices, minlength=len(program.cost)))])
        self.present = np.empty(0, np.int64)
        self.absent: NDArray[np.bool_] = np.ones(len(program.cost), bool)
        self._open()
        self._add(np.flatnonzero(self._first_columns()))

    def _open(self) -> None:
        import highspy

        self.highs = highspy.Highs()
        self.highs.setOptionValue("output_flag", False)
        n_rows = len(self.program.row_lower)
        none = np.empty(0, np.int32)
        self.highs.addRows(
            n_rows, self.program.row_lower, self.program.row_upper, 0, np.zeros(n_rows, np.int32), none, np.empty(0)
        )

    def _first_columns(self) -> NDArray[np.bool_]:
        """Mark the columns to begin with: all that no demand row holds, and of each demand row the cheapest."""
        program, s = self.program, self.structure
        lazy = s.demand >= 0
        if lazy.sum() <= _FEW:
            return np.ones(len(lazy), bool)
        price = np.full(len(program.row_lower), np.inf)  # of a replica of each capacity row
        np.minimum.at(price, s.whole_row, program.cost[s.whole_column] / np.maximum(s.multiple, 1e-9))
        estimate = program.cost.copy()
        estimate += np.bincount(
            s.load_column, weights=s.load * np.where(np.isfinite(price), price, 0.0)[s.load_row], minlength=len(lazy)
        )
        first = ~lazy
        first[_least_of_each(s.demand, estimate, np.flatnonzero(lazy), _FIRST)] = True
        return first

    def _add(self, columns: Indices) -> None:
        """Hand over columns, with what stands in the program's rows and in the cuts so far."""
        program, cuts = self.program, self.cuts
        length = self._starts[columns + 1] - self._starts[columns]
        starts = np.concatenate([[0], np.cumsum(length)])[:-1]
        at = np.repeat(self._starts[columns] - starts, length) + np.arange(length.sum())
        entries = self._order[at]
        position = np.full(len(program.cost), -1)
        position[columns] = np.arange(len(columns))
        cut = np.flatnonzero(position[cuts.indices] >= 0)
        of_column = np.concatenate([np.repeat(np.arange(len(columns)), length), position[cuts.indices[cut]]])
        rows = np.concatenate([self.structure.row_of[entries], len(program.row_lower) + cuts.row_of[cut]])
        order = np.argsort(of_column, kind="stable")
        self.highs.addCols(
            len(columns),
            program.cost[columns],
            program.lower[columns],
            self.structure.upper[columns],
            len(order),
            np.searchsorted(of_column[order], np.arange(len(columns))).astype(np.int32),
            rows[order].astype(np.int32),
            np.concatenate([program.data[entries], cuts.data[cut]])[order],
        )
        self.present = np.concatenate([self.present, columns])
        self.absent[columns] = False

    def solve(self, deadline: float) -> bool:
        """Solve; whether there is an optimum with duals."""
        import highspy

        kinds = highspy.HighsModelStatus
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + max(deadline - time.perf_counter(), 0.0))
        self.highs.run()
        if self.highs.getModelStatus() == kinds.kInfeasible and self.absent.any():
            self._add(np.flatnonzero(self.absent))  # whether the whole program is, only all of the columns can say
            self.highs.run()
        if self.highs.getModelStatus() != kinds.kOptimal:
            return False
        solution = self.highs.getSolution()
        self.values = np.zeros(len(self.program.cost))
        self.values[self.present] = solution.col_value
        self.dual = np.array(solution.row_dual)
        return True

    def price(self) -> bool:
        """Add the absent columns that the duals price in; whether there were any."""
        if not self.absent.any():
            return False
        reduced = self._reduced_cost(self.dual)
        wanted = self.absent & (reduced < -_PRICED_IN * max(1.0, float(np.abs(self.program.cost).max())))
        if not wanted.any():
            return False
        self._add(_least_of_each(self.structure.demand, reduced, np.flatnonzero(wanted), _MORE))
        return True

    def cut(self, cuts: Cuts) -> None:
        """Add rows."""
        position = np.full(len(self.absent), -1)
        position[self.present] = np.arange(len(self.present))
        here = position[cuts.indices]
        inside = here >= 0
        self.highs.addRows(
            len(cuts),
            cuts.lower,
            np.full(len(cuts), np.inf),
            int(inside.sum()),
            np.searchsorted(cuts.row_of[inside], np.arange(len(cuts))).astype(np.int32),
            here[inside].astype(np.int32),
            cuts.data[inside],
        )
        self.cuts = self.cuts.and_(cuts)

    def relaxed(self) -> Relaxed:
        """Return what the duals at hand prove."""
        program, s = self.program, self.structure
        n_rows = len(program.row_lower)
        dual = self.dual.copy()
        rows, cut = dual[:n_rows], np.maximum(dual[n_rows:], 0.0)
        # A dual counts only for a side that the row has.
        rows[(rows > 0) & ~np.isfinite(program.row_lower)] = 0.0
        rows[(rows < 0) & ~np.isfinite(program.row_upper)] = 0.0
        reduced = self._reduced_cost(np.concatenate([rows, cut]))
        _lower_demand_duals(program, s, rows, reduced)
        reduced = self._reduced_cost(np.concatenate([rows, cut]))
        right = np.where(rows > 0, program.row_lower, np.where(rows < 0, program.row_upper, 0.0))
        bound = float(rows @ right + cut @ self.cuts.lower) + _at_better_end(program.lower, s.upper, reduced)
        return Relaxed(bound, self.values, reduced, rows, self.cuts.only(cut > 0))

    def _reduced_cost(self, dual: Floats) -> Floats:
        program, n_rows, n = self.program, len(self.program.row_lower), len(self.program.cost)
        priced = np.bincount(program.indices, weights=program.data * dual[self.structure.row_of], minlength=n)
        reduced = program.cost - priced
        if len(self.cuts):
            charged = self.cuts.data * dual[n_rows:][self.cuts.row_of]
            reduced -= np.bincount(self.cuts.indices, weights=charged, minlength=n)
        return np.asarray(reduced)


def _lower_demand_duals(program: MatrixProgram, structure: Structure, rows: Floats, reduced: Floats) -> None:
    """Lower each demand row's dual, in place, until none of its columns has a reduced cost below zero.

    That costs the bound once what the cheapest column would cost it, instead of what all of them would.
    """
    inside = (structure.demand >= 0)[program.indices]
    inside &= structure.demand[program.indices] == structure.row_of
    per_unit = reduced[program.indices[inside]] / program.data[inside]
    least = np.zeros(len(rows))
    np.minimum.at(least, structure.row_of[inside], per_unit)
    rows += least


def _at_better_end(lower: Floats, upper: Floats, reduced: Floats) -> float:
    """Return the least that the columns cost at their reduced costs, each at one of its bounds."""
    end = np.where(reduced > 0, lower, np.where(reduced < 0, upper, 0.0))
    # The simplex leaves duals that are off by rounding; a column without a bound would make that infinite.
    end = np.where(~np.isfinite(end) & (np.abs(reduced) <= 1e-7), 0.0, end)
    return float(np.sum(reduced * end))


def _least_of_each(group: Indices, cost: Floats, among: Indices, most: int) -> Indices:
    """Return the `most` columns of each group with the least cost, of those in `among`, in order of index."""
    order = among[np.lexsort((cost[among], group[among]))]
    groups = group[order]
    first = np.searchsorted(groups, groups, side="left")
    return np.sort(order[np.arange(len(order)) - first < most])
