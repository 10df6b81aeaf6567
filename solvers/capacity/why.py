"""Why a plan is as it is: what binds, what a little more of each resource is worth, and what else there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult
from qplan.solvers.capacity.solve import solve_capacity

NEAR = 0.05  # runner-ups within this of the plan are all told


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """A plan that differs in kind: what it does without, its objective and replicas by deployment."""

    without: str
    objective: float
    replicas: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What stands behind a plan.

    Attributes
    ----------
    unit
        ``$/h`` or ``GPUs``.
    marginal_cost_per_qps
        What one more request/s adds to the objective, replicas taken as divisible (dual of the LP relaxation).
    worth_of_gpu
        What one more GPU of a type takes off the objective, likewise; only types whose inventory binds.
    whole_replicas_cost
        What the objective pays because replicas come whole: its distance from the LP relaxation.
    runner_ups
        The plans within 5 %, or else the nearest; best first.
    rejected
        Deployments of the profiles that could not serve, counted by reason.
    """

    unit: str
    marginal_cost_per_qps: float
    worth_of_gpu: Mapping[str, float]
    whole_replicas_cost: float
    runner_ups: tuple[RunnerUp, ...]
    rejected: Mapping[str, int]


def explain(problem: CapacityProblem, result: CapacityResult, rejected: Mapping[str, int]) -> Explanation:
    """Explain the fleet that `result` found for `problem`."""
    assert result.objective is not None
    relaxed, per_qps, worth = _duals(problem)
    return Explanation(
        unit="$/h" if problem.objective == "cost" else "GPUs",
        marginal_cost_per_qps=per_qps,
        worth_of_gpu={name: float(value) for name, value in zip(problem.gpu_types, worth, strict=True) if value > 1e-9},
        whole_replicas_cost=max(result.objective - relaxed, 0.0),
        runner_ups=_runner_ups(problem, result),
        rejected=rejected,
    )


def _duals(problem: CapacityProblem) -> tuple[float, float, NDArray[np.float64]]:
    """Solve the LP relaxation: its objective, its rise per request/s (all classes alike) and its fall per GPU.

    Columns are the rate that each deployment serves of each eligible class, then the replicas.
    """
    from scipy.optimize import linprog

    n_types, n_classes = len(problem.gpu_types), len(problem.classes)
    of_class, of_deployment = np.nonzero(problem.capacity_qps)
    pairs, replicas = len(of_class), len(problem.deployments)
    serve = np.zeros((n_classes, pairs + replicas))
    serve[of_class, np.arange(pairs)] = 1
    capacity = np.zeros((replicas, pairs + replicas))
    capacity[of_deployment, np.arange(pairs)] = 1 / problem.capacity_qps[of_class, of_deployment]
    capacity[np.arange(replicas), pairs + np.arange(replicas)] = -1
    stock = np.zeros((n_types, pairs + replicas))
    stock[problem.gpu_type, pairs + np.arange(replicas)] = problem.gpus
    limited = np.isfinite(problem.inventory)
    answer = linprog(
        np.concatenate([np.zeros(pairs), problem.price]),
        A_ub=np.concatenate([capacity, stock[limited]]),
        b_ub=np.concatenate([np.zeros(replicas), problem.inventory[limited]]),
        A_eq=serve,
        b_eq=problem.rate_qps,
        method="highs",
    )
    assert answer.status == 0  # the integer program has a solution, so its relaxation has
    worth = np.zeros(n_types)
    worth[limited] = -answer.ineqlin.marginals[replicas:]
    mix = problem.rate_qps / problem.rate_qps.sum()
    return float(answer.fun or 0.0), float(answer.eqlin.marginals @ mix), worth


def _runner_ups(problem: CapacityProblem, result: CapacityResult) -> tuple[RunnerUp, ...]:
    """Solve again without each deployment in use, and without each GPU type in use."""
    assert result.objective is not None
    used = np.flatnonzero(result.counts)
    bans = {problem.deployments[i]: np.arange(len(problem.deployments)) == i for i in used}
    for kind in sorted({int(problem.gpu_type[i]) for i in used}):
        bans[problem.gpu_types[kind]] = problem.gpu_type == kind
    found: dict[tuple[int, ...], RunnerUp] = {}
    for without, banned in bans.items():
        other = solve_capacity(problem.without(banned))
        if other.status in ("optimal", "feasible") and other.objective is not None:
            counts = {problem.deployments[i]: int(other.counts[i]) for i in np.flatnonzero(other.counts)}
            found.setdefault(tuple(other.counts.tolist()), RunnerUp(without, other.objective, counts))
    ranked = sorted(found.values(), key=lambda one: one.objective)
    near = [one for one in ranked if one.objective <= result.objective * (1 + NEAR) + 1e-9]
    return tuple(near or ranked[:1])
