"""What one measure costs in terms of another: Pareto fronts by the epsilon-constraint method.

G. Mavrotas, "Effective implementation of the epsilon-constraint method in multi-objective mathematical programming
problems", Applied Mathematics and Computation 213(2), 2009: the first measure is minimised under limits on the others,
which step through their ranges in the payoff table; and of the fleets that reach the minimum one is taken that no
other dominates. There a small bonus on the limits' slack does that; here the other measures are minimised in turn,
which needs no choice of the bonus. As there, limits that an earlier fleet already keeps are not solved again, and
those tighter than infeasible ones are not tried.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.solvers.fleet.problem import MEASURES
from qplan.solvers.fleet.solve import solve_fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.fleet.problem import FleetProblem, FleetResult

#: Differences in a measure below this, relative, are none.
_SAME = 1e-6


def pareto(
    problem: FleetProblem,
    measures: Sequence[str],
    points: int = 8,
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 120.0,
    mip_gap: float = 1e-4,
) -> list[FleetResult]:
    """Return fleets of which none is better than another in every one of `measures`, by the first measure.

    Parameters
    ----------
    measures
        Two or more of cost, gpus, energy, carbon and quality (of which more is better); not quality alone. The
        objective of `problem` plays no part, its limits do.
    points
        About how many fleets to look for: limits to try, the ranges divided evenly.
    time_limit_s
        Wall time for everything. Fleets that are not proven best in their place are part of the front all the same.

    Returns
    -------
    list of FleetResult
        Empty if the problem is infeasible.

    Raises
    ------
    InputError
        For measures that are unknown or too few.
    """
    choices = (*MEASURES, "quality")
    for name in measures:
        if name not in choices:
            raise InputError(f"pareto: unknown '{name}'; expected {', '.join(choices)}{nearest(name, choices)}")
    if len(set(measures)) != len(measures) or len(measures) < 2:
        raise InputError(f"pareto: {', '.join(measures) or 'nothing'}; expected two or more different measures")
    first = next(name for name in measures if name != "quality")
    others = [name for name in measures if name != first]
    deadline = time.perf_counter() + time_limit_s
    steps = max(2, round(points ** (1 / len(others))))
    solves_left = steps ** len(others) + len(others)

    def solve(lead: str, rest: Sequence[str], limits: dict[str, float]) -> FleetResult:
        nonlocal solves_left
        left, solves_left = max(deadline - time.perf_counter(), 0.0), solves_left - 1
        asked = replace(problem, objective=((lead, 1.0),), then=tuple(rest), at_most=_tighter(problem, limits))
        return solve_fleet(asked, backend=backend, time_limit_s=left / max(solves_left, 1), mip_gap=mip_gap)

    cheapest = solve(first, others, {})
    if cheapest.objective is None:
        return []
    solved: list[tuple[Mapping[str, float], FleetResult]] = [({}, cheapest)]
    ends, ranges = [], []
    for name in others:
        best = _best_quality(problem)
        if name != "quality":
            end = solve(name, [first, *(one for one in others if one != name)], {})
            ends += [end] if end.objective is not None else []
            best = end.measures.get(name, cheapest.measures[name])
        ranges.append(np.linspace(cheapest.measures[name], best, steps + 1)[1:])

    hopeless: list[Mapping[str, float]] = []
    for levels in product(*ranges):
        limits = dict(zip(others, map(float, levels), strict=True))
        if any(_within(limits, looser) for looser in hopeless):
            continue
        if any(_within(limits, looser) and _within(one.measures, limits) for looser, one in solved):
            continue  # the best under looser limits keeps these too
        if time.perf_counter() >= deadline:
            break
        result = solve(first, others, limits)
        if result.objective is not None:
            solved.append((limits, result))
        elif result.status == "infeasible":
            hopeless.append(limits)
    return undominated([*(one for _, one in solved), *ends], measures)


def undominated(results: Sequence[FleetResult], measures: Sequence[str]) -> list[FleetResult]:
    """Return the results that no other equals or betters in all measures, by the first measure."""
    kept: list[FleetResult] = []
    for one in sorted(results, key=lambda result: [_low(result.measures, name) for name in measures]):
        limits = {name: one.measures[name] for name in measures}
        if not any(_within(other.measures, limits) for other in kept):
            kept.append(one)
    return kept


def _within(measures: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether measures, or tighter limits, keep limits."""
    return all(_low(measures, name) <= _low(limits, name) + _SAME * max(abs(limits[name]), 1e-9) for name in limits)


def _tighter(problem: FleetProblem, limits: dict[str, float]) -> dict[str, float]:
    """Return the problem's limits with others, the tighter of each."""
    tight = dict(problem.at_most)
    for name, limit in limits.items():
        sides = (limit, tight.get(name, limit))
        tight[name] = max(sides) if name == "quality" else min(sides)
    return tight


def _best_quality(problem: FleetProblem) -> float:
    """Return what no fleet's quality exceeds: every bucket where it is served best."""
    weight = problem.requests.sum(1)
    best = np.where(problem.eligible, problem.quality, 0.0).max(1)
    return float(weight @ best / max(weight.sum(), 1e-300))


def _low(measures: Mapping[str, float], name: str) -> float:
    return -measures[name] if name == "quality" else measures[name]
