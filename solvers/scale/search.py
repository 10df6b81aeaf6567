"""Whole replicas for one piece: mixed-integer programs over the columns that the relaxation prices well.

A whole column whose reduced cost exceeds the distance between the bound and a solution in hand is zero in every better
solution (reduced cost fixing), and with it the loads that only it could carry. So the search begins with the few
columns that look best, which soon gives a solution, and widens until what is left out is proven useless: then what the
last search proved holds for the whole piece.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends.contract import feasible_point
from qplan.solvers.scale.dive import dive
from qplan.solvers.scale.pieces import restricted
from qplan.solvers.scale.relaxation import relax
from qplan.solvers.scale.structure import read_structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import MatrixProgram, SolverBackend
    from qplan.solvers.scale.relaxation import Relaxed
    from qplan.solvers.scale.structure import Structure

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

#: A width or number of loads that leaves nothing out.
EVERY = 10**9
#: Share of a search's time that may go into a first solution.
_DIVING = 0.5
#: Distance between bound and objective from which on a dive may well find something better, relative to the bound.
_FAR = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """A piece's best solution so far, and what is proven of the piece.

    Attributes
    ----------
    program
        What is left of the piece's program: all that a better solution could take part in.
    columns : ndarray of int
        Its columns in the piece.
    structure, relaxed
        Of that program.
    values : ndarray, or None
        Of all of the piece's columns.
    objective
        Of the values; inf without.
    bound
        No solution of the piece costs less.
    prices : ndarray
        Costs of all of the piece's columns.
    done
        Whether the last search left out nothing that could have been better, and came to its end.
    """

    program: MatrixProgram
    columns: NDArray[np.int64]
    structure: Structure
    relaxed: Relaxed
    values: Floats | None
    objective: float
    bound: float
    prices: Floats
    done: bool = False

    @classmethod
    def begin(cls, program: MatrixProgram, structure: Structure, relaxed: Relaxed, start: Floats | None) -> Search:
        """Begin with what the relaxation proved and, where there is one, a feasible point."""
        if start is None:
            # Whole replicas for every fraction of one: dear, and at hand.
            start = feasible_point(program, np.where(program.integer, np.ceil(relaxed.values - 1e-6), relaxed.values))
        objective = np.inf if start is None else float(program.cost @ start)
        columns = np.arange(len(program.cost))
        return cls(program, columns, structure, relaxed, start, objective, min(relaxed.bound, objective), program.cost)

    @property
    def distance(self) -> float:
        """From the bound to the objective; inf without a solution."""
        return self.objective - self.bound

    @property
    def loads(self) -> int:
        """Loads that a better solution could have."""
        stranded = _stranded(self.structure, self._useless())
        return int(((self.structure.demand >= 0) & ~stranded).sum())

    def widened(self, backend: SolverBackend, *, width: int, loads: int, time_limit_s: float, mip_gap: float) -> Search:
        """Search over the `width` kinds of replicas with the least reduced cost, with `loads` pairs of each demand."""
        begun = time.perf_counter()
        found, (kept, everything) = self, self._chosen(width, loads)
        if self.distance > _FAR * abs(self.bound):
            part = restricted(self._with_cuts(), kept)
            point = _feasible(part.program, begun + _DIVING * time_limit_s)
            found = self._improved(self.columns[part.columns], point)
            kept, everything = found._chosen(width, loads)
        part = restricted(self._with_cuts(), kept)
        columns = self.columns[part.columns]
        answer = backend.solve(
            part.program,
            time_limit_s=max(begun + time_limit_s - time.perf_counter(), 0.0),
            mip_gap=mip_gap,
            start=found._start(columns),
        )
        found = found._improved(columns, answer.values)
        if everything:
            proven = np.inf if answer.status == "infeasible" else answer.bound
            proven = -np.inf if proven is None else proven
            bound = max(found.bound, min(proven, found.objective))
            ended = answer.status in ("optimal", "infeasible") or (
                found.objective - bound <= mip_gap * abs(found.objective)
            )
            found = replace(found, done=ended, bound=bound)
        return found

    def _chosen(self, width: int, loads: int) -> tuple[Mask, bool]:
        """Mark the columns to search over, and say whether all that a better solution could have are among them."""
        program, useless = self.program, self._useless()
        used = np.zeros(len(program.cost), bool) if self.values is None else self.values[self.columns] > 0
        dropped = useless | (program.integer & (program.lower == 0) & (self._rank() >= width) & ~used)
        kept = ~dropped & ~_stranded(self.structure, dropped)
        fewer = kept & (self._among_best(kept, loads) | used)
        return fewer, not (dropped & ~useless).any() and not (kept & ~fewer).any()

    def narrowed(self, deadline: float) -> Search:
        """Leave out what cannot be part of a better solution, and strengthen the relaxation of the rest."""
        useless = self._useless()
        if not useless.any():
            return self
        part = restricted(self._with_cuts(), ~useless & ~_stranded(self.structure, useless))
        structure = read_structure(part.program)
        relaxed = relax(part.program, structure, deadline)
        if relaxed is None:
            return self
        return replace(
            self,
            program=part.program,
            columns=self.columns[part.columns],
            structure=structure,
            relaxed=relaxed,
            bound=max(self.bound, min(relaxed.bound, self.objective)),
        )

    def _with_cuts(self) -> MatrixProgram:
        cuts = self.relaxed.cuts
        return self.program.with_rows(cuts.row_of, cuts.indices, cuts.data, cuts.lower, np.full(len(cuts), np.inf))

    def _improved(self, columns: NDArray[np.int64], values: Floats | None) -> Search:
        """Return the search with the better of its solution and another, given over some columns of the piece."""
        if values is None:
            return self
        objective = float(self.prices[columns] @ values)
        if objective >= self.objective:
            return self
        point = np.zeros(len(self.prices))
        point[columns] = values
        return replace(self, values=point, objective=objective)

    def _start(self, columns: NDArray[np.int64]) -> Floats | None:
        """Return the solution in hand over some columns; None if it has others."""
        if self.values is None:
            return None
        part = self.values[columns]
        return part if np.count_nonzero(part) == np.count_nonzero(self.values) else None

    def _useless(self) -> Mask:
        """Mark the whole columns that are zero in every solution better than the one in hand."""
        margin = 1e-7 * max(1.0, abs(self.relaxed.bound))
        worse = self.relaxed.reduced_cost > self.objective - self.relaxed.bound + margin
        return np.asarray(self.program.integer & (self.program.lower == 0) & worse)

    def _rank(self) -> NDArray[np.int64]:
        """Return the rank of each kind of replica by reduced cost, those in the relaxed optimum first; -1: others."""
        kinds = np.unique(self.structure.whole_column)
        relaxed = self.relaxed
        order = np.lexsort((relaxed.reduced_cost[kinds], relaxed.values[kinds] <= 1e-6))
        rank = np.full(len(self.program.cost), -1)
        rank[kinds[order]] = np.arange(len(kinds))
        return rank

    def _among_best(self, kept: Mask, loads: int) -> Mask:
        """Mark the `loads` kept columns of each demand with the least reduced cost, and all others than loads."""
        demand, reduced = self.structure.demand, self.relaxed.reduced_cost
        pairs = np.flatnonzero(kept & (demand >= 0))
        order = pairs[np.lexsort((reduced[pairs], demand[pairs]))]
        groups = demand[order]
        late = np.arange(len(order)) - np.searchsorted(groups, groups, side="left") >= loads
        best = np.ones(len(kept), bool)
        best[order[late]] = False
        return best | (self.relaxed.values > 1e-6)


def _feasible(program: MatrixProgram, deadline: float) -> Floats | None:
    """Return a first solution, or None."""
    found = dive(program, deadline)
    return None if found is None else feasible_point(program, found)


def _stranded(structure: Structure, dropped: Mask) -> Mask:
    """Mark the loads that no replica is left for."""
    s = structure
    carried = np.zeros(int(s.row_of[-1]) + 1 if len(s.row_of) else 0, bool)
    carried[s.whole_row[(s.multiple > 0) & ~dropped[s.whole_column]]] = True
    stranded = np.zeros(len(dropped), bool)
    stranded[s.load_column[(s.load > 0) & ~carried[s.load_row]]] = True
    return stranded
