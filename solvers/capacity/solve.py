"""Solve a capacity problem: the cheapest fleet, and of the equally cheap ones the best."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers import scale
from qplan.solvers.backends import Solution, open_backend
from qplan.solvers.backends.contract import conclude, graded
from qplan.solvers.capacity.prices import shadow_prices
from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult
from qplan.solvers.capacity.program import CapacityProgram, build
from qplan.solvers.capacity.prune import undominated
from qplan.solvers.capacity.spare import broken_by_a_loss, with_cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import MatrixProgram, SolverBackend

#: By how much a tie-break may give way in what was settled before it, relative.
_TIE = 1e-9

#: How finely ties are broken, relative. Quality is not known better; and the last thousandth of it would take
#: all headroom, by filling the best deployment to the brim.
_QUALITY_STEP = 1e-3
_HEADROOM_STEP = 1e-2

#: Seconds that breaking ties may take. One class needs a twentieth of it, with a spare a tenth.
_TIES_S = 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """How to solve: with which backend, until when on the clock, to which relative gap."""

    backend: SolverBackend
    deadline: float
    mip_gap: float = 0.0

    @classmethod
    def start(cls, backend: str | SolverBackend, time_limit_s: float, mip_gap: float = 0.0) -> Run:
        """Open the backend if it is a name, and start the clock."""
        opened = open_backend(backend) if isinstance(backend, str) else backend
        return cls(opened, time.perf_counter() + time_limit_s, mip_gap)

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.deadline - time.perf_counter()

    def solve(self, matrix: MatrixProgram) -> Solution:
        """Minimise a program in the time that is left."""
        return scale.minimise(matrix, self.backend, time_limit_s=max(self.left_s, 0.0), mip_gap=self.mip_gap)

    def minimise(self, program: CapacityProgram) -> tuple[Solution, CapacityProgram]:
        """Solve the program, with a spare until its fleet survives every loss.

        Returns
        -------
        Solution
            Its bound is the best of the programs solved on the way: each is a relaxation of the full question.
            When time is up, its fleet is the cheapest seen that survives every loss.
        CapacityProgram
            The program with the cuts that it took.
        """
        if program.problem.spare:
            program = self._cut_relaxation(program)
        best, bound = Solution("no-solution"), -np.inf
        while self.left_s > 0:
            answer = self.solve(program.matrix)
            if (answer.values is not None and not program.problem.spare) or answer.status == "infeasible":
                return answer, program
            bound = max(bound, -np.inf if answer.bound is None else answer.bound)
            if answer.values is None:
                break
            cuts = broken_by_a_loss(program, answer.values, self.backend)
            best = _cheaper(best, _reinforced(program, answer.values) if cuts else answer)
            if not cuts:
                break
            for prices in cuts:
                program = with_cut(program, prices)
        known = bound if np.isfinite(bound) else None
        if best.values is None or best.objective is None:
            return Solution("no-solution", bound=known), program
        return graded(best.values, best.objective, known, best.seconds), program

    def _cut_relaxation(self, program: CapacityProgram) -> CapacityProgram:
        """Add the cuts that the linear relaxation breaks: linear programs are cheap, searches are not."""
        while self.left_s > 0:
            relaxed = replace(program.matrix, integer=np.zeros_like(program.matrix.integer))
            answer = self.backend.solve(relaxed, time_limit_s=self.left_s, mip_gap=0.0)
            cuts = [] if answer.values is None else broken_by_a_loss(program, answer.values, self.backend)
            if not cuts:
                break
            for prices in cuts:
                program = with_cut(program, prices)
        return program


def solve_capacity(
    problem: CapacityProblem,
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 60.0,
    mip_gap: float = 0.0,
) -> CapacityResult:
    """Return the fleet with the least objective.

    Of the fleets with the same objective, the one with the best traffic-weighted quality; of those, the least of
    the other objective (GPUs or $/h); of those, the one that would carry the most demand. Ties are broken only
    once the objective is proven, with what is left of the time.

    Parameters
    ----------
    backend
        A backend or the name of one (:func:`~qplan.solvers.backends.open_backend`).
    time_limit_s
        Wall time for everything.
    mip_gap
        Relative gap at which the search may stop.

    Raises
    ------
    InputError
        If the backend does not exist or is not installed.
    """
    start = time.perf_counter()
    run = Run.start(backend, time_limit_s, mip_gap)
    program = build(problem, undominated(problem, by_quality=False))
    first, program = run.minimise(program.minimising(problem.price))
    counts = np.zeros(len(problem.deployments), np.int64)
    assignment = np.zeros(problem.capacity_qps.shape)
    if first.values is not None and first.objective is not None:
        counts, assignment = program.counts(first.values), program.assignment(first.values)
        if first.status == "optimal":
            counts, assignment = _break_ties(problem, counts, assignment, first.objective, run)
        assignment = _balanced(problem, counts, assignment, run)
    busy = (problem.load * assignment).sum(0)
    assert first.status != "unbounded"  # prices are not negative
    return CapacityResult(
        status=first.status,
        counts=counts,
        assignment=assignment,
        utilisation=np.divide(busy, counts, out=np.zeros_like(busy), where=counts > 0),
        objective=first.objective,
        bound=first.bound,
        gap=first.gap,
        seconds=time.perf_counter() - start,
        backend=run.backend.name,
    )


def _break_ties(
    problem: CapacityProblem,
    counts: NDArray[np.int64],
    assignment: NDArray[np.float64],
    objective: float,
    run: Run,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best of the fleets that cost `objective`, and its assignment, as far as time allows."""
    most = objective * (1 + _TIE)
    prices = shadow_prices(problem, run.backend)
    affordable = prices.relaxation + prices.excess <= most + _TIE
    kept = undominated(problem, by_quality=True)
    program = build(problem, kept[affordable[kept]]).spending_at_most(problem.price, most)
    deadline = min(run.deadline, time.perf_counter() + _TIES_S)

    quality = program.pair_quality
    program = program.with_matrix(program.matrix.with_cost(program.share, -quality))
    answer, program = replace(run, deadline=deadline, mip_gap=_QUALITY_STEP).minimise(program)
    if answer.values is None or answer.objective is None:
        return counts, assignment
    counts, assignment = program.counts(answer.values), program.assignment(answer.values)
    program = program.reaching_quality(-answer.objective * (1 - _QUALITY_STEP))

    other = problem.gpus.astype(float) if problem.objective == "cost" else problem.cost_per_hour
    answer, program = replace(run, deadline=deadline, mip_gap=0.0).minimise(program.minimising(other))
    if answer.values is None or answer.objective is None:
        return counts, assignment
    counts, assignment = program.counts(answer.values), program.assignment(answer.values)
    program = program.spending_at_most(other, answer.objective * (1 + _TIE))

    answer, program = replace(run, deadline=deadline, mip_gap=_HEADROOM_STEP).minimise(
        program.most_demand(at_least=1.0)
    )
    if answer.values is None:
        return counts, assignment
    return program.counts(answer.values), program.assignment(answer.values)


def _balanced(
    problem: CapacityProblem, counts: NDArray[np.int64], assignment: NDArray[np.float64], run: Run
) -> NDArray[np.float64]:
    """Return the assignment under which the busiest deployment of the fleet is least busy, at equal quality."""
    program = build(replace(problem, spare=0), np.flatnonzero(counts))
    fleet = counts[program.kept]
    program = program.with_matrix(program.matrix.with_bounds(program.count, fleet, fleet))
    shares = assignment[program.pair_class, program.kept[program.pair_kept]]
    program = program.reaching_quality(float(program.pair_quality @ shares) * (1 - _QUALITY_STEP))
    answer = run.backend.solve(program.most_demand(at_least=1.0).matrix, time_limit_s=_TIES_S, mip_gap=0.0)
    return assignment if answer.values is None else program.assignment(answer.values)


def _reinforced(program: CapacityProgram, values: NDArray[np.float64]) -> Solution:
    """Return a fleet that carries the demand, but not after every loss, with one more replica of all it uses.

    Whatever it loses, the fleet that carries the demand is left. No solution if the inventory is too small.
    """
    more = values.copy()
    more[program.count] += values[program.count] > 0.5
    return conclude(program.matrix, "feasible", values=more, bound=None, seconds=0.0)


def _cheaper(left: Solution, right: Solution) -> Solution:
    """Return the solution with the lower objective; the left one of equals."""
    if left.objective is None or (right.objective is not None and right.objective < left.objective):
        return right
    return left
