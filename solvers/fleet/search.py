"""Searches over the whole horizon: one program solved, with its spare replicas; and a fleet improved in parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import Solution
from qplan.solvers.backends.contract import OPTIMAL_GAP, graded
from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.measures import weighted
from qplan.solvers.fleet.program import build
from qplan.solvers.fleet.spare import broken_by_a_loss, reinforced, with_cut, with_runs, without_any_kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.capacity.solve import Run
    from qplan.solvers.fleet.problem import FleetProblem

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

#: By how much a later objective may give way in what was settled before it, relative.
TIE = 1e-9

#: Part of the time kept for a fleet that survives more losses than it must, should none be found that is just enough.
_FALLBACK = 0.2

#: Part of that for the rows that the linear relaxation breaks.
_CUTTING = 0.4

#: Periods that are free to change at a time, and seconds for each try.
_WINDOW = 3
_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A program that was solved, and what came of it."""

    program: FleetProgram
    solution: Solution


def weighing(problem: FleetProblem, kept: Indices) -> FleetProgram:
    """Return the program of `problem` over the options `kept`, which minimises its objective."""
    program = build(problem, kept)
    return program.with_matrix(replace(program.matrix, cost=program.charges(weighted(problem, problem.objective))))


def within(run: Run, part: float) -> Run:
    """Return a run that ends when that part of the time is used up."""
    return replace(run, deadline=run.deadline - (1 - part) * max(run.left_s, 0.0))


def minimise(program: FleetProgram, run: Run) -> Answer:
    """Solve a program, with spare replicas until its fleet survives every loss.

    Each program solved on the way is a relaxation, so its bound holds. Its fleet with the replicas that it lacks is
    one that survives, the cheapest of which has to do when time is up. If limits forbid them all, a fleet is sought
    that survives the loss of `spare` replicas of every option at once.
    """
    if not program.problem.spare:
        return Answer(program, run.solve(program.matrix))
    program, runs = with_runs(program)
    hurried, bound = within(run, 1 - _FALLBACK), -np.inf
    program = _cut_relaxation(program, runs, within(hurried, _CUTTING))
    best: Answer | None = None
    while hurried.left_s > 0:
        answer = hurried.solve(program.matrix)
        if answer.status == "infeasible":
            return Answer(program, answer)
        bound = max(bound, -np.inf if answer.bound is None else answer.bound)
        if answer.values is None:
            break
        cuts = broken_by_a_loss(program, runs, answer.values, run.backend)
        if not cuts:
            assert answer.objective is not None
            return Answer(program, graded(answer.values, answer.objective, bound, answer.seconds))
        found = _with_replicas(program, reinforced(program, answer.values, run.backend), run)
        if best is None or least_of(found.solution) < least_of(best.solution):
            best = found
        if is_near(graded_by(best.solution, bound), run.mip_gap):
            break
        for h, prices in cuts:
            program = with_cut(program, runs, h, prices)
    if best is not None and best.solution.values is not None:
        return replace(best, solution=graded_by(best.solution, bound))
    safe = without_any_kind(program, runs)
    answer = run.solve(safe.matrix)
    known = bound if np.isfinite(bound) else None
    if answer.values is None or answer.objective is None:
        return Answer(program, Solution("no-solution", bound=known))
    return Answer(safe, graded(answer.values, answer.objective, known, answer.seconds))


def _with_replicas(program: FleetProgram, counts: Floats | None, run: Run) -> Answer:
    """Return the program's best with replicas given, if there are any such; starts, nodes and shares are free."""
    if counts is None:
        return Answer(program, Solution("no-solution"))
    matrix = program.matrix.with_bounds(program.count, counts, counts)
    return Answer(program, run.backend.solve(matrix, time_limit_s=max(run.left_s, 0.0), mip_gap=run.mip_gap))


def graded_by(solution: Solution, bound: float) -> Solution:
    """Return a solution with another bound; one without values as it is."""
    if solution.values is None or solution.objective is None:
        return solution
    return graded(solution.values, solution.objective, bound if np.isfinite(bound) else None, solution.seconds)


def _cut_relaxation(program: FleetProgram, runs: Indices, run: Run) -> FleetProgram:
    """Add the rows that the linear relaxation breaks: linear programs are cheap, searches are not."""
    while run.left_s > 0:
        relaxed = replace(program.matrix, integer=np.zeros_like(program.matrix.integer))
        answer = run.backend.solve(relaxed, time_limit_s=run.left_s, mip_gap=0.0)
        cuts = [] if answer.values is None else broken_by_a_loss(program, runs, answer.values, run.backend)
        if not cuts:
            break
        for h, prices in cuts:
            program = with_cut(program, runs, h, prices)
    return program


def improved(problem: FleetProblem, counts: Indices, bound: float, run: Run) -> Answer | None:
    """Return the fleet of `counts` with whatever moves, a few periods at a time, make it better; None if none fits.

    Parameters
    ----------
    counts : ndarray of int, shape (D, H)
        Each period's own fleet, spare included.
    bound
        What no fleet undercuts.
    """
    used = np.flatnonzero(counts.any(1))
    program = weighing(problem, used)
    now, most = counts[used].astype(float), problem.most_replicas[used][:, None]
    # As they are; else, where limits over the horizon do not hold, with some more or fewer.
    for low, high in ((now, now), (np.maximum(now - 1, 0.0), np.minimum(now + 2, most))):
        if (high > low).any() and problem.spare:
            return None
        matrix = program.matrix.with_bounds(program.count, low, high)
        answer = run.backend.solve(matrix, time_limit_s=max(run.left_s, 0.0), mip_gap=run.mip_gap)
        if answer.values is not None:
            break
    if answer.values is None or answer.objective is None:
        return None
    best, periods = answer, counts.shape[1]
    width, first, idle = min(_WINDOW, periods), 0, 0
    while not problem.spare and run.left_s > 0 and idle < periods and not _proven(best, bound, run.mip_gap):
        assert best.values is not None
        now = np.round(best.values[program.count])
        free = np.zeros(periods, bool)
        free[(first + np.arange(width)) % periods] = True
        near = np.unique((first + np.arange(-1, width + 1)) % periods)
        around = now[:, near].sum(1, keepdims=True) > 0
        high = np.where(free & around, np.minimum(most, now.max(1, keepdims=True) + 1), now)
        matrix = program.matrix.with_bounds(program.count, np.where(free, 0.0, now), high)
        answer = run.backend.solve(matrix, time_limit_s=min(run.left_s, _WINDOW_S), mip_gap=run.mip_gap)
        better = least_of(answer) < least_of(best) * (1 - TIE)
        best, idle = (answer, 0) if better else (best, idle + 1)
        first = (first + 1) % periods
    assert best.values is not None
    assert best.objective is not None
    return Answer(program, graded(best.values, best.objective, bound, best.seconds))


def _proven(solution: Solution, bound: float, mip_gap: float) -> bool:
    least = least_of(solution)
    return least - bound <= max(mip_gap, OPTIMAL_GAP) * abs(least)


def least_of(solution: Solution) -> float:
    """Return the objective of a solution, infinite if there is none."""
    return np.inf if solution.objective is None else solution.objective


def is_near(solution: Solution, mip_gap: float) -> bool:
    """Whether a solution is proven to a gap."""
    return solution.gap is not None and solution.gap <= max(mip_gap, OPTIMAL_GAP)
