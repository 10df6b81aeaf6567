"""An explanation in names: what :mod:`qplan.solvers.capacity.explain` found, as plain data for reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qplan.solvers.capacity.explain import RunnerUp, explain
from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult


@dataclass(frozen=True, slots=True)
class OtherPlan:
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
        What one more request/s adds to the objective, were replicas divisible.
    worth_of_gpu
        What one more GPU of a type takes off the objective, likewise; only types whose inventory binds.
    whole_replicas_cost
        What the objective pays because replicas come whole, and for the spare.
    runner_ups
        The plans within 5 %, or else the nearest; best first.
    rejected
        Deployments of the profiles that could not serve, counted by reason.
    """

    unit: str
    marginal_cost_per_qps: float
    worth_of_gpu: Mapping[str, float]
    whole_replicas_cost: float
    runner_ups: tuple[OtherPlan, ...]
    rejected: Mapping[str, int]


def explained(
    problem: CapacityProblem, result: CapacityResult, rejected: Mapping[str, int], solver: str
) -> Explanation:
    """Explain the fleet that `result` found for `problem`; the mix of classes is that of the demand."""
    assert result.objective is not None
    found = explain(problem, result, backend=solver)
    mix = problem.rate_qps / problem.rate_qps.sum()
    worth = zip(problem.gpu_types, found.prices.per_gpu.tolist(), strict=True)
    return Explanation(
        unit="$/h" if problem.objective == "cost" else "GPUs",
        marginal_cost_per_qps=float(found.prices.per_qps @ mix),
        worth_of_gpu={name: value for name, value in worth if value > 1e-9},
        whole_replicas_cost=max(result.objective - found.prices.relaxation, 0.0),
        runner_ups=tuple(_named(problem, other) for other in found.runners_up),
        rejected=rejected,
    )


def _named(problem: CapacityProblem, other: RunnerUp) -> OtherPlan:
    assert other.result.objective is not None
    if other.without_deployment is not None:
        without = problem.deployments[other.without_deployment]
    else:
        assert other.without_gpu_type is not None
        without = problem.gpu_types[other.without_gpu_type]
    counts = other.result.counts
    replicas = {problem.deployments[d]: int(counts[d]) for d in np.flatnonzero(counts)}
    return OtherPlan(without, other.result.objective, replicas)
