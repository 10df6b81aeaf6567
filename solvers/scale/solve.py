"""From a fleet program to a solution with a proven gap.

1. Read demand and capacity rows (:mod:`~qplan.solvers.scale.structure`), and split the program where only rows with
   slack tie it together (:mod:`~qplan.solvers.scale.pieces`).
2. Bound each piece by its relaxation with residual capacity inequalities, also of deployments at about one price
   together (:mod:`~qplan.solvers.scale.capacities`), pairs generated as they pay
   (:mod:`~qplan.solvers.scale.relaxation`).
3. Search each piece over the columns that the relaxation cannot rule out (:mod:`~qplan.solvers.scale.search`).

If the pieces break a row that was left out, their bound stands and the whole is solved as one piece.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import MatrixProgram, Solution, SolverBackend, open_backend
from qplan.solvers.backends.contract import feasible_point, graded
from qplan.solvers.scale.parallel import each, workers_of
from qplan.solvers.scale.pieces import Piece, loose_pieces, without_fixed
from qplan.solvers.scale.relaxation import relax
from qplan.solvers.scale.search import EVERY, Search
from qplan.solvers.scale.structure import read_structure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

#: Share of the time that the first relaxations may take, and by how much of the bound a round of cuts has to lift it.
_RELAXING, _LIFT = 0.3, 1e-3
#: Share of a search's time that may go into a stronger relaxation of what is left.
_NARROWING = 0.6
#: Rounds of searches: kinds of replicas, loads of each demand, share of the time left that the round may take unless
#: it is the last, and the loads up to which a piece is better searched whole.
_ROUNDS = ((20, 10, 0.3, 400), (60, 25, 0.5, 20_000), (EVERY, EVERY, 1.0, EVERY))


def solve_at_scale(
    program: MatrixProgram,
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 60.0,
    mip_gap: float = 1e-4,
    start: ArrayLike | None = None,
) -> Solution:
    """Minimise a fleet program; the answer's bound and gap are those of the whole program.

    Parameters
    ----------
    backend
        Solves the mixed-integer programs on the way; the relaxations are HiGHS's.
    time_limit_s
        Wall time for everything.
    mip_gap
        Relative gap at which the search may stop.
    start : array_like of shape (C,), optional
        A point to begin with, of a similar program; taken if it is feasible.

    Raises
    ------
    InputError
        If the backend does not exist or is not installed.
    """
    opened = open_backend(backend) if isinstance(backend, str) else backend
    begun = time.perf_counter()
    deadline = begun + time_limit_s
    known = None if start is None else feasible_point(program, start)
    free, values = without_fixed(program)
    constant = float(program.cost @ values)
    begin = None if known is None else known[free.columns]
    bound = -np.inf
    for pieces in _splits(free.program):
        answer = _solve_pieces(free.program, pieces, opened, deadline, mip_gap, begin)
        if answer is None:  # a relaxation has no optimum: let the backend say why
            break
        found, proven = answer
        bound = max(bound, proven + constant)
        if found is not None:
            values[free.columns] = found
            point = feasible_point(program, values)
            if point is not None:
                return graded(point, float(program.cost @ point), bound, time.perf_counter() - begun)
        if time.perf_counter() >= deadline:
            break
    return _handed_over(program, opened, begun, deadline, mip_gap, known, bound)


def _splits(program: MatrixProgram) -> Iterator[Sequence[Piece]]:
    """Yield the pieces that the program falls into without its linking rows, if any; then the whole as one."""
    pieces, linking = loose_pieces(program, read_structure(program))
    if len(pieces) > 1:
        yield pieces
    if len(pieces) == 1 or linking.any():
        yield [Piece(np.arange(len(program.cost)), program)]


def _solve_pieces(
    program: MatrixProgram,
    pieces: Sequence[Piece],
    backend: SolverBackend,
    deadline: float,
    mip_gap: float,
    known: Floats | None,
) -> tuple[Floats | None, float] | None:
    """Return the pieces' solutions as one point, if each has one, and the sum of their bounds.

    None if a relaxation has no optimum, and no point either as soon as the relaxations together break a row.
    """
    workers = workers_of(backend)
    begun = time.perf_counter()

    def begin(piece: Piece, until: float) -> Search | None:
        structure = read_structure(piece.program)
        relaxed = relax(piece.program, structure, until, lift=_LIFT)
        point = None if known is None else known[piece.columns]
        return None if relaxed is None else Search.begin(piece.program, structure, relaxed, point)

    relaxations = each(begin, pieces, begun + _RELAXING * (deadline - begun), workers)
    searches = [one for one in relaxations if one is not None]
    if len(searches) < len(pieces):
        return None
    joined = _joined(program, pieces, [one.relaxed.values for one in searches])
    if len(pieces) > 1 and _breaks_a_row(program, joined):
        return None, sum(one.bound for one in searches)

    for width, loads, fraction, few in _ROUNDS:

        def widen(one: Search, until: float, width: int = width, loads: int = loads, few: int = few) -> Search:
            now = time.perf_counter()
            one = one.narrowed(now + _NARROWING * (until - now))
            left = until - time.perf_counter()
            if left <= 0 or _closed([one], mip_gap):
                return one
            if one.loads <= few:
                width = loads = EVERY
            return one.widened(backend, width=width, loads=loads, time_limit_s=left, mip_gap=mip_gap / 2)

        now = time.perf_counter()
        if now >= deadline or _closed(searches, mip_gap):
            break
        open_ = [i for i, one in enumerate(searches) if not one.done and not _closed([one], mip_gap)]
        open_.sort(key=lambda i: (searches[i].distance, i))
        last = all(searches[i].loads <= few for i in open_)  # nothing is left to widen later
        until = deadline if last else now + fraction * (deadline - now)
        wider = each(widen, [searches[i] for i in open_], until, workers)
        for i, one in zip(open_, wider, strict=True):
            searches[i] = one
    bound = sum(one.bound for one in searches)
    found = [one.values for one in searches if one.values is not None]
    return (_joined(program, pieces, found) if len(found) == len(pieces) else None), bound


def _closed(searches: Sequence[Search], mip_gap: float) -> bool:
    """Whether the pieces together are within the gap, though one may not be."""
    objective = sum(one.objective for one in searches)
    return objective < np.inf and objective - sum(one.bound for one in searches) <= mip_gap * abs(objective)


def _joined(program: MatrixProgram, pieces: Sequence[Piece], values: Sequence[Floats]) -> Floats:
    joined = np.zeros(len(program.cost))
    for piece, of_piece in zip(pieces, values, strict=True):
        joined[piece.columns] = of_piece
    return joined


def _breaks_a_row(program: MatrixProgram, values: Floats) -> bool:
    """Whether a fractional point breaks a row or bound."""
    return feasible_point(replace(program, integer=np.zeros_like(program.integer)), values) is None


def _handed_over(
    program: MatrixProgram,
    backend: SolverBackend,
    begun: float,
    deadline: float,
    mip_gap: float,
    known: Floats | None,
    bound: float,
) -> Solution:
    """Hand the whole program to the backend in what time is left; the start, if any, is the least it returns."""
    left = deadline - time.perf_counter()
    answer = Solution("no-solution")
    if left > 0:
        answer = backend.solve(program, time_limit_s=left, mip_gap=mip_gap, start=known)
    seconds = time.perf_counter() - begun
    if answer.status in ("infeasible", "unbounded"):
        return replace(answer, seconds=seconds)
    proven = max(bound, -np.inf if answer.bound is None else answer.bound)
    values = answer.values
    if known is not None and (answer.objective is None or program.cost @ known < answer.objective):
        values = known
    if values is None:
        return Solution("no-solution", bound=proven if np.isfinite(proven) else None, seconds=seconds)
    return graded(values, float(program.cost @ values), proven if np.isfinite(proven) else None, seconds)
