"""Solve a fleet problem: the fleet with the least objective, then of those the best."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import Solution
from qplan.solvers.backends.contract import OPTIMAL_GAP, graded
from qplan.solvers.capacity.solve import Run
from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.measures import measured
from qplan.solvers.fleet.periods import by_period
from qplan.solvers.fleet.problem import FleetProblem, FleetResult
from qplan.solvers.fleet.program import build
from qplan.solvers.fleet.prune import undominated
from qplan.solvers.fleet.relax import Prices, relax
from qplan.solvers.fleet.search import TIE, Answer, improved, is_near, least_of, minimise, weighing, within

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend

    Indices = NDArray[np.int64]

#: Share columns up to which a program of several periods is solved together: its whole replicas are many times harder
#: to prove than those of the periods by themselves.
_SMALL = 100

#: Options that a large problem is first solved over, and how much of the time that is left a first round may take.
_FEW = 16
_SHARE_OF_TIME = 0.6

#: Parts of the time that is left for the periods by themselves, and then for putting them together.
_PERIODS = 0.5
_IMPROVING = 0.6

#: Share columns up to which a search over the horizon is worth the rest of the time.
_SEARCHABLE = 8_000

#: Seconds that spreading the demand over the fleet may take.
_BALANCE_S = 10.0


def solve_fleet(
    problem: FleetProblem,
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 60.0,
    mip_gap: float = 1e-4,
) -> FleetResult:
    """Return the fleet with the least objective; of those, the least of each measure of ``problem.then`` in turn.

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
    answer = _least(problem, run)
    first = answer.solution
    if first.values is not None and problem.then and is_near(first, mip_gap):
        answer = _then(answer, run)
    if answer.solution.values is not None and (problem.rate_qps > 0).any():
        answer = _balanced(answer, run)
    return _result(answer, first, run, time.perf_counter() - start)


def _least(problem: FleetProblem, run: Run) -> Answer:
    """Return the fleet with the least objective, and a bound that holds over all options."""
    kept = undominated(problem)
    unserved = (problem.rate_qps > 0).any(1) & ~problem.eligible.any(1)
    if unserved.any() or (problem.rate_qps.any() and most_at_once(problem) <= problem.spare):
        return Answer(build(problem, kept), Solution("infeasible"))
    if not (problem.rate_qps > 0).any():
        program = build(problem, kept)
        return Answer(program, Solution("optimal", np.zeros(len(program.matrix.cost)), 0.0, 0.0, 0.0))
    large = len(problem.hours) > 1 and _pairs(problem, kept) > _SMALL
    prices = relax(problem, kept, run) if large else None
    if prices is None:
        return minimise(weighing(problem, kept), run)
    found = by_period(problem, kept, prices, within(run, _PERIODS), _solved)
    bound = max(prices.bound, found.bound)
    known = None
    if found.counts is not None:
        known = improved(problem, found.counts, bound, within(run, _IMPROVING))
    if known is not None and (is_near(known.solution, run.mip_gap) or _pairs(problem, kept) > _SEARCHABLE):
        return known
    return _narrowed(problem, kept, prices, known, bound, run)


def _solved(program: FleetProgram, run: Run) -> tuple[FleetProgram, Solution]:
    answer = minimise(program, run)
    return answer.program, answer.solution


def _narrowed(
    problem: FleetProblem, kept: Indices, prices: Prices, known: Answer | None, bound: float, run: Run
) -> Answer:
    """Solve over the options of least excess, more of them each time, until the others are proven useless.

    A fleet of the chosen options costs at least what the solver proves; any other uses an option left out, and costs
    at least the relaxation and that option's excess. The lesser of the two is the bound over all options.
    """
    order = kept[np.argsort(prices.excess[kept], kind="stable")]
    best, chosen = known, min(_FEW, len(order))
    while True:
        program = weighing(problem, np.sort(order[:chosen]))
        answer = minimise(program, within(run, 1.0 if chosen == len(order) else _SHARE_OF_TIME))
        found = answer.solution
        others = prices.bound + prices.excess[order[chosen]] if chosen < len(order) else np.inf
        proven = np.inf if found.status == "infeasible" else -np.inf if found.bound is None else found.bound
        bound = max(bound, min(proven, others))
        if best is None or least_of(found) < least_of(best.solution):
            best = answer
        least = least_of(best.solution)
        if chosen == len(order) or run.left_s <= 0:
            break
        needed = len(order)
        if best.solution.values is not None:
            allowed = max(run.mip_gap, OPTIMAL_GAP) * abs(least)
            needed = int(np.searchsorted(prices.excess[order], least - allowed - prices.bound))
            if least - bound <= allowed or needed <= chosen:
                break  # proven; or what is open is the search among the chosen, and the others are out
        chosen = min(needed, 2 * chosen)
    solution = best.solution
    if solution.values is None:
        status = solution.status if chosen == len(order) else "no-solution"
        return replace(best, solution=Solution(status, bound=bound))
    assert solution.objective is not None
    return replace(best, solution=graded(solution.values, solution.objective, bound, solution.seconds))


def _then(answer: Answer, run: Run) -> Answer:
    """Minimise the later measures in turn, each among the fleets that are best so far, as far as time allows.

    Options that the objective needed not may serve a later measure; all are taken in, unless they are too many.
    """
    problem = answer.program.problem
    every = undominated(problem)
    if len(answer.program.kept) < len(every) and _pairs(problem, every) <= _SEARCHABLE:
        answer = Answer(weighing(problem, every), answer.solution)
    for measure in problem.then:
        objective = answer.solution.objective
        assert objective is not None
        kept = answer.program.keeping(objective + TIE * max(abs(objective), 1.0))
        later = minimise(kept.minimising(measure), run)
        if later.solution.values is None:
            break
        answer = later
    return answer


def _balanced(answer: Answer, run: Run) -> Answer:
    """Return the same fleet with the demand spread so that each period's busiest option is least busy."""
    program, solution = answer.program, answer.solution
    values, objective = solution.values, solution.objective
    assert values is not None
    assert objective is not None
    program = program.keeping(objective + TIE * max(abs(objective), 1.0))
    fixed = np.flatnonzero(program.matrix.integer)
    counts = np.round(values[program.count])
    periods = np.arange(counts.shape[1])
    matrix = program.matrix.with_bounds(fixed, values[fixed], values[fixed])
    free = len(matrix.cost) + periods
    matrix = matrix.with_columns([f"free {h}" for h in periods], upper=1.0)
    option, period = np.nonzero(counts)
    rows = np.full(counts.shape, -1)
    rows[option, period] = np.arange(len(option))
    _, of_pair, when = program.pair
    served = np.flatnonzero(rows[of_pair, when] >= 0)
    matrix = matrix.with_rows(
        np.concatenate([rows[of_pair, when][served], np.arange(len(option))]),
        np.concatenate([program.share[served], free[period]]),
        np.concatenate([program.loads[served], counts[option, period]]),
        np.full(len(option), -np.inf),
        counts[option, period],
    )
    matrix = replace(matrix, integer=np.zeros_like(matrix.integer)).with_cost(free, -program.problem.hours)
    spread = run.backend.solve(matrix, time_limit_s=_BALANCE_S, mip_gap=0.0)
    if spread.values is None:
        return answer
    return replace(answer, solution=replace(solution, values=spread.values[: len(values)]))


def _result(answer: Answer, first: Solution, run: Run, seconds: float) -> FleetResult:
    """Return what a solution says, with everything computed anew from the fleet."""
    program, problem, values = answer.program, answer.program.problem, answer.solution.values
    shape = (len(problem.options), len(problem.hours))
    if values is None:
        assert first.status in ("infeasible", "no-solution")  # rates are not negative
        none = np.zeros(shape, np.int64)
        held = np.zeros(problem.gpu_price.shape, np.int64)
        share = np.zeros((len(problem.bucket_class), *shape))
        return FleetResult(
            status="infeasible" if first.status == "infeasible" else "no-solution",
            counts=none,
            starts=none,
            bought=held.sum(1),
            held=held,
            share=share,
            measures={},
            objective=None,
            bound=first.bound,
            gap=None,
            seconds=seconds,
            backend=run.backend.name,
        )
    counts, held, share = program.counts(values), program.held(values), program.shares(values)
    starts = started(counts, cyclic=problem.cyclic)
    measures = measured(problem, counts, starts, held, share)
    objective = float(sum(weight * measures[name] for name, weight in problem.objective))
    bound = None if first.bound is None else min(first.bound, objective)
    gap = None if bound is None else (objective - bound) / objective if objective else 0.0
    return FleetResult(
        status="optimal" if gap is not None and gap <= max(run.mip_gap, OPTIMAL_GAP) else "feasible",
        counts=counts,
        starts=starts,
        bought=np.where(problem.committed, held[:, 0], 0),
        held=held,
        share=share,
        measures=measures,
        objective=objective,
        bound=bound,
        gap=gap,
        seconds=seconds,
        backend=run.backend.name,
    )


def started(counts: Indices, *, cyclic: bool) -> Indices:
    """Return how many replicas start for each period, shape (D, H): what a period has more than the one before."""
    before = np.roll(counts, 1, axis=1)
    if not cyclic:
        before[:, 0] = 0
    return np.asarray(np.maximum(counts - before, 0))


def most_at_once(problem: FleetProblem) -> float:
    """Return the most replicas that the inventory holds, were all of the smallest kind: what a spare is less than."""
    serves = problem.eligible.any(0)
    pools = np.unique(problem.pool[serves])
    smallest = [problem.gpus[serves & (problem.pool == g)].min() for g in pools]
    return float(np.floor(problem.inventory[pools] / smallest).sum())


def _pairs(problem: FleetProblem, kept: Indices) -> int:
    """Return the share columns of a program over some options."""
    return int((problem.eligible[:, kept].sum(1) * (problem.rate_qps > 0).sum(1)).sum())
