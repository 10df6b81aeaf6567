"""One period at a time: a stronger bound than the linear relaxation's, and a first fleet.

What ties the periods together - starts, committed GPUs, limits over the horizon - is priced instead (Lagrangian
relaxation, as in unit commitment: Muckstadt and Koenig, Operations Research 25(3), 1977). With prices ``0 <= u[d,h] <=
per_start[d,h]`` on the rows ``count[d,h] - count[d,h-1] <= start[d,h]``, a replica of option d costs ``u[d,h] -
u[d,h+1]`` more in period h, starts cost nothing more, and every period is a program of its own, in whole replicas and
with its spare. The periods' bounds and what the priced limits are worth add up to a bound for the horizon. Each period
is solved over a few options; a fleet with another costs at least the linear bound and what that option's replica costs
beyond its worth, as over the horizon (:mod:`qplan.solvers.fleet.relax`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.measures import Rates, per_start
from qplan.solvers.fleet.program import build
from qplan.solvers.scale.parallel import each, workers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from qplan.solvers.backends import Solution
    from qplan.solvers.capacity.solve import Run
    from qplan.solvers.fleet.problem import FleetProblem
    from qplan.solvers.fleet.relax import Prices

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Minimise = Callable[[FleetProgram, Run], tuple[FleetProgram, Solution]]

#: Options that a period is solved over.
_OPTIONS = 40


@dataclass(frozen=True, slots=True, eq=False)
class ByPeriod:
    """What came of the periods.

    Attributes
    ----------
    counts : ndarray of int, shape (D, H), or None
        Replicas of each period's own fleet; None if a period has none.
    bound
        No fleet for the horizon costs less.
    """

    counts: Indices | None
    bound: float


def by_period(problem: FleetProblem, kept: Indices, prices: Prices, run: Run, minimise: Minimise) -> ByPeriod:
    """Solve each period at `prices`, some at a time, each in an equal part of the time that is left.

    Parameters
    ----------
    kept
        The options that may be of use.
    minimise
        Solves a program, with its spare replicas.
    """
    periods = len(problem.hours)
    starts = per_start(problem, prices.charged)
    staying = worth_of_staying(prices.net, starts, cyclic=problem.cyclic)
    after = np.roll(staying, -1, axis=1)
    if not problem.cyclic:
        after[:, -1] = 0.0
    dearer = staying - after
    excess = prices.net + dearer
    most = problem.most_replicas
    gpu_hour = np.where(problem.committed[:, None], prices.rent / problem.hours, prices.charged.gpu_hour)
    weight = problem.requests / max(problem.requests.sum(), 1e-300)

    def solve(h: int, until: float) -> tuple[float, Indices | None]:
        """Return a period's bound and its own fleet."""
        order = kept[np.argsort(excess[kept, h], kind="stable")]
        chosen = np.sort(order[:_OPTIONS])
        alone = replace(problem.at(h), committed=np.zeros(len(problem.pools), bool))
        program = build(alone, chosen)
        bucket, option, _ = program.pair
        cost = program.charges(Rates(gpu_hour[:, [h]], prices.charged.kwh[[h]], prices.charged.start))
        cost[program.share] -= weight[bucket, h] * prices.share_worth[bucket, chosen[option]]
        cost[program.count[:, 0]] += dearer[chosen, h]
        matrix = replace(program.matrix, cost=cost).with_bounds(program.count[:, 0], 0.0, most[chosen])
        solved, answer = minimise(program.with_matrix(matrix), replace(run, deadline=until))
        others = prices.value[h] + excess[order[_OPTIONS], h] if len(order) > _OPTIONS else np.inf
        found = np.inf if answer.status == "infeasible" else answer.bound
        proven = prices.value[h] if found is None else max(min(found, others), prices.value[h])
        return float(proven), None if answer.values is None else solved.counts(answer.values)[:, 0]

    found = each(solve, range(periods), run.deadline, workers_of(run.backend))
    bound = prices.rest + sum(proven for proven, _ in found)
    fleets = [counts for _, counts in found if counts is not None]
    counts = np.stack(fleets, axis=1) if len(fleets) == periods else None
    return ByPeriod(counts, float(bound))


def worth_of_staying(net: Floats, starts: Floats, *, cyclic: bool) -> Floats:
    """Return what being up already when a period begins is worth to a replica, between 0 and a start. Shape (D, H).

    The least prices that make no period's replica cost less than it is worth, where there are such prices.

    Parameters
    ----------
    net, starts : ndarray of shape (D, H)
    """
    periods = net.shape[1]
    staying = np.zeros(net.shape)
    if cyclic and periods == 1:
        return staying
    net = np.where(np.isfinite(net), net, 0.0)
    later = np.zeros(len(net))
    for h in reversed(range(periods * (2 if cyclic else 1))):
        later = np.clip(later - net[:, h % periods], 0.0, starts[:, h % periods])
        staying[:, h % periods] = later
    return staying
