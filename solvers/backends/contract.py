"""What a solver backend is handed, and what it owes.

A backend minimises a :class:`MatrixProgram` and answers with a :class:`Solution`. Every backend promises:

- ``values`` are feasible and integral, or absent. A backend does not take its solver's word for it:
  :func:`conclude` checks what came back.
- ``bound`` is what the solver itself proved about the optimum, never a guess; ``None`` where it says nothing.
- ``status`` is ``optimal`` only when that bound closes the gap to :data:`OPTIMAL_GAP`. A run that a limit
  ended with a solution in hand is ``feasible``, one without is ``no-solution``.
- ``infeasible`` and ``unbounded`` are proven, not guessed from a run that ended early.
- The same program gives the same answer again; a backend keeps no state between calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Status = Literal["optimal", "feasible", "infeasible", "unbounded", "no-solution"]

#: Relative gap between objective and bound up to which a solution counts as proven optimal. Solvers stop at
#: absolute tolerances of their own (HiGHS 1e-6, CBC 1e-5), which a gap of exactly zero would deny.
OPTIMAL_GAP = 1e-6

#: By how much a row or bound may be missed, relative to the size of the row's terms (at least 1).
FEASIBILITY_TOLERANCE = 1e-6

#: How far from a whole number an integer column may come back before it counts as fractional.
INTEGRALITY_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class MatrixProgram:
    """A mixed-integer linear program: minimise ``cost @ v`` over ``row_lower <= A v <= row_upper``.

    ``A`` has R rows and C columns, in compressed sparse rows: row ``i`` holds ``data[s:e]`` in columns
    ``indices[s:e]`` with ``s, e = indptr[i], indptr[i + 1]``. Programs are never changed; the ``with_``
    methods return a new one.

    Attributes
    ----------
    cost : ndarray of shape (C,)
    lower, upper : ndarray of shape (C,)
        Column bounds; infinite where there is none.
    integer : ndarray of bool, shape (C,)
    row_lower, row_upper : ndarray of shape (R,)
    indptr, indices, data : ndarray of shape (R + 1,), (nnz,), (nnz,)
    names : tuple of str, length C
        Column names, for messages and model files.
    """

    cost: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    integer: NDArray[np.bool_]
    names: tuple[str, ...]
    row_lower: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    row_upper: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    indptr: NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    indices: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    data: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def with_rows(
        self, rows: ArrayLike, columns: ArrayLike, values: ArrayLike, lower: ArrayLike, upper: ArrayLike
    ) -> MatrixProgram:
        """Append rows given as triplets; `rows` counts from 0 at the first new row.

        Parameters
        ----------
        rows, columns, values : array_like of shape (n,)
            Coefficient ``values[i]`` stands in new row ``rows[i]`` and column ``columns[i]``, each pair once.
        lower, upper : array_like of shape (m,)
            Bounds of the m new rows.
        """
        row_lower = np.atleast_1d(np.asarray(lower, float))
        row_upper = np.atleast_1d(np.asarray(upper, float))
        rows, columns = np.asarray(rows, np.int32), np.asarray(columns, np.int32)
        order = np.lexsort((columns, rows))
        ends = self.indptr[-1] + np.cumsum(np.bincount(rows, minlength=len(row_lower)))
        return replace(
            self,
            row_lower=np.concatenate([self.row_lower, row_lower]),
            row_upper=np.concatenate([self.row_upper, row_upper]),
            indptr=np.concatenate([self.indptr, ends]).astype(np.int32),
            indices=np.concatenate([self.indices, columns[order]]),
            data=np.concatenate([self.data, np.asarray(values, float)[order]]),
        )

    def with_row(
        self, columns: ArrayLike, values: ArrayLike, *, lower: float = -np.inf, upper: float = np.inf
    ) -> MatrixProgram:
        """Append one row with coefficient ``values[i]`` in column ``columns[i]``."""
        columns = np.asarray(columns)
        values = np.broadcast_to(np.asarray(values, float), columns.shape)
        return self.with_rows(np.zeros(len(columns)), columns, values, lower, upper)

    def with_columns(
        self,
        names: Sequence[str],
        *,
        cost: float = 0.0,
        lower: float = 0.0,
        upper: ArrayLike = np.inf,
        integer: bool = False,
    ) -> MatrixProgram:
        """Append one column for each of `names`, in no row yet."""
        n = len(names)
        return replace(
            self,
            cost=np.concatenate([self.cost, np.full(n, cost)]),
            lower=np.concatenate([self.lower, np.full(n, lower)]),
            upper=np.concatenate([self.upper, np.broadcast_to(np.asarray(upper, float), n)]),
            integer=np.concatenate([self.integer, np.full(n, integer)]),
            names=(*self.names, *names),
        )

    def with_cost(self, columns: ArrayLike, values: ArrayLike) -> MatrixProgram:
        """Replace the objective: ``values[i]`` in column ``columns[i]``, zero elsewhere."""
        cost = np.zeros(len(self.cost))
        cost[np.asarray(columns)] = values
        return replace(self, cost=cost)

    def with_bounds(self, columns: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> MatrixProgram:
        """Replace the bounds of some columns."""
        lowers, uppers = self.lower.copy(), self.upper.copy()
        lowers[np.asarray(columns)], uppers[np.asarray(columns)] = lower, upper
        return replace(self, lower=lowers, upper=uppers)

    @property
    def bounded(self) -> bool:
        """Whether the column bounds alone keep the objective from falling without end."""
        falls = np.where(self.cost > 0, self.lower, np.where(self.cost < 0, self.upper, 0.0))
        return bool(np.isfinite(falls).all())


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What a backend found.

    Attributes
    ----------
    status
        ``optimal``, ``feasible``, ``infeasible``, ``unbounded`` or ``no-solution``.
    values : ndarray of shape (C,), or None
        Feasible to tolerance, integer columns whole. Present exactly when the status is optimal or feasible.
    objective
        ``cost @ values``.
    bound
        No feasible point costs less than this; as the solver states it.
    gap
        ``(objective - bound) / |objective|``; None where the bound is.
    seconds
        Wall time of the call.
    """

    status: Status
    values: NDArray[np.float64] | None = None
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    seconds: float = 0.0


class SolverBackend(Protocol):
    """Minimises matrix programs. See the module's docstring for what every backend promises."""

    @property
    def name(self) -> str:
        """The name that chooses this backend, such as ``highs`` or ``pulp:cbc``."""

    def solve(
        self, program: MatrixProgram, *, time_limit_s: float, mip_gap: float, start: NDArray[np.float64] | None = None
    ) -> Solution:
        """Minimise `program`, stopping after `time_limit_s` seconds or at relative gap `mip_gap`.

        `start` is a point to begin the search from, shape (C,), known to be feasible. It may shorten the search and
        changes nothing that is proven; a backend may leave it aside.
        """


class BackendFactory(Protocol):
    """What an entry point of the group ``qplan.solver_backends`` names: a class like this."""

    def __call__(self, variant: str) -> SolverBackend:
        """Open the backend; `variant` is what follows the colon in ``name:variant``, or empty.

        Raises :class:`~qplan.core.errors.InputError` if it does not exist or is not installed.
        """

    def installed(self) -> Sequence[str]:
        """Return the full names of the backends that would open here."""


def conclude(
    program: MatrixProgram,
    claim: Status,
    *,
    values: ArrayLike | None,
    bound: float | None,
    seconds: float,
) -> Solution:
    """Turn what a solver claims into what can be vouched for.

    Parameters
    ----------
    claim
        What the solver says. ``optimal`` without a `bound` means that it proved the objective itself.
    values : array_like of shape (C,), or None
        The point that came back, whatever its worth.
    bound
        The bound that the solver states, or None.
    """
    if claim in ("infeasible", "unbounded"):
        return Solution(claim, seconds=seconds)
    bound = None if bound is None or not np.isfinite(bound) else float(bound)
    point = None if values is None or claim == "no-solution" else feasible_point(program, values)
    if point is None:
        return Solution("no-solution", bound=bound, seconds=seconds)
    objective = float(program.cost @ point)
    if bound is None and claim == "optimal":
        bound = objective
    return graded(point, objective, bound, seconds)


def graded(point: NDArray[np.float64], objective: float, bound: float | None, seconds: float) -> Solution:
    """Return a feasible point as optimal or feasible, by what `bound` proves about its objective."""
    if bound is None:
        return Solution("feasible", point, objective, seconds=seconds)
    bound = min(bound, objective)  # rounding in the solver can put its bound a hair above its own solution
    gap = (objective - bound) / abs(objective) if objective else objective - bound
    closed = objective - bound <= OPTIMAL_GAP * max(1.0, abs(objective))
    return Solution("optimal" if closed else "feasible", point, objective, bound, gap, seconds)


def feasible_point(program: MatrixProgram, values: ArrayLike) -> NDArray[np.float64] | None:
    """Return `values` with integer columns made whole, or None if they break a row or bound."""
    point: NDArray[np.float64] = np.array(values, float)
    if point.shape != program.cost.shape or not np.isfinite(point).all():
        return None
    whole = np.round(point)
    fractional = np.abs(point - whole) > INTEGRALITY_TOLERANCE * np.maximum(1.0, np.abs(whole) * 1e-3)
    if (program.integer & fractional).any():
        return None
    point = np.where(program.integer, whole, point)

    slack = FEASIBILITY_TOLERANCE * np.maximum(1.0, np.abs(point))
    if (point < program.lower - slack).any() or (point > program.upper + slack).any():
        return None
    point = np.asarray(np.minimum(np.maximum(point, program.lower), program.upper))

    terms = program.data * point[program.indices]
    row_of = np.repeat(np.arange(len(program.row_lower)), np.diff(program.indptr))
    activity = np.bincount(row_of, weights=terms, minlength=len(program.row_lower))
    size = np.bincount(row_of, weights=np.abs(terms), minlength=len(program.row_lower))
    slack = FEASIBILITY_TOLERANCE * np.maximum(1.0, size)
    if (activity < program.row_lower - slack).any() or (activity > program.row_upper + slack).any():
        return None
    return point
