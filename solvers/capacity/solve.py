"""Solve a capacity problem: the cheapest fleet, and of the equally cheap ones the best."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import Solution, open_backend
from qplan.solvers.capacity.prices import shadow_prices
from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult
from qplan.solvers.capacity.program import CapacityProgram, build
from qplan.solvers.capacity.prune import undominated
from qplan.solvers.capacity.spare import broken_by_a_loss, with_cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend

#: By how much a tie-break may give way in what was settled before it, relative.
_TIE = 1e-9

#: How finely ties are broken, relative. Quality is not known better; and the last thousandth of it would take
#: all headroom, by filling the best deployment to the brim.
_QUALITY_STEP = 1e-3
_HEADROOM_STEP = 1e-2


@dataclass(frozen=True, slots=True)
class Run:
    """How to solve: with which backend, until when, to which gap."""

    backend: SolverBackend
    deadline: float
    mip_gap: float

    @classmethod
    def start(cls, backend: str | SolverBackend, time_limit_s: float, mip_gap: float) -> Run:
        """Open the backend if it is a name, and start the clock."""
        opened = open_backend(backend) if isinstance(backend, str) else backend
        return cls(opened, time.perf_counter() + time_limit_s, mip_gap)

    def minimise(self, program: CapacityProgram, *, mip_gap: float = 0.0) -> tuple[Solution, CapacityProgram]:
        """Solve the program, with a spare until its fleet survives every loss.

        Returns
        -------
        Solution
            Its status, bound and gap are the last program's, which is a relaxation of the full question.
        CapacityProgram
            The program with the cuts that it took.
        """
        if program.problem.spare:
            program = self._cut_relaxation(program)
        while True:
            left_s = self.deadline - time.perf_counter()
            if left_s <= 0:
                return Solution("no-solution"), program
            answer = self.backend.solve(program.matrix, time_limit_s=left_s, mip_gap=max(mip_gap, self.mip_gap))
            if answer.values is None or not program.problem.spare:
                return answer, program
            cuts = broken_by_a_loss(program, answer.values, self.backend)
            if not cuts:
                return answer, program
            for prices in cuts:
                program = with_cut(program, prices)

    def _cut_relaxation(self, program: CapacityProgram) -> CapacityProgram:
        """Add the cuts that the linear relaxation breaks: linear programs are cheap, searches are not."""
        while time.perf_counter() < self.deadline:
            relaxed = replace(program.matrix, integer=np.zeros_like(program.matrix.integer))
            answer = self.backend.solve(
                relaxed, time_limit_s=max(self.deadline - time.perf_counter(), 0.01), mip_gap=0.0
            )
            cuts = [] if answer.values is None else broken_by_a_loss(program, answer.values, self.backend)
            if not cuts:
                return program
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
        values = first.values
        if first.status == "optimal":
            program, values = _break_ties(program, values, first.objective, run)
        counts, assignment = program.counts(values), program.assignment(values)
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
    cheapest: CapacityProgram, values: NDArray[np.float64], objective: float, run: Run
) -> tuple[CapacityProgram, NDArray[np.float64]]:
    """Return the best of the fleets that cost `objective`, and the program whose solution it is."""
    problem = cheapest.problem
    most = objective * (1 + _TIE)
    prices = shadow_prices(problem, run.backend)
    affordable = prices.relaxation + prices.excess <= most + _TIE
    kept = undominated(problem, by_quality=True)
    program = build(problem, kept[affordable[kept]]).spending_at_most(problem.price, most)

    quality = program.pair_quality
    answer, program = run.minimise(
        program.with_matrix(program.matrix.with_cost(program.share, -quality)), mip_gap=_QUALITY_STEP
    )
    if answer.values is None:
        return cheapest, values
    best = program, answer.values
    least = float(quality @ answer.values[program.share]) * (1 - _QUALITY_STEP)
    columns = np.append(program.share, program.scale)
    program = program.with_matrix(program.matrix.with_row(columns, np.append(quality, -least), lower=0.0))

    other = problem.gpus.astype(float) if problem.objective == "cost" else problem.cost_per_hour
    answer, program = run.minimise(program.minimising(other))
    if answer.values is None or answer.objective is None:
        return best
    best = program, answer.values
    program = program.spending_at_most(other, answer.objective * (1 + _TIE))

    matrix = program.matrix.with_bounds(program.scale, 1.0, np.inf).with_cost([program.scale], [-1.0])
    answer, program = run.minimise(program.with_matrix(matrix), mip_gap=_HEADROOM_STEP)
    return best if answer.values is None else (program, answer.values)
