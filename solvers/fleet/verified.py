"""Plans as the simulator takes them, and the plan of one rate that holds in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.demand import Demand
from qplan.core.deployment import Deployment
from qplan.core.errors import InfeasibleError
from qplan.core.workload import Workload
from qplan.models.simulator.grids import grid_of
from qplan.models.simulator.replica import Replica
from qplan.models.steptimes import Bools, Floats, Ints, StepTimes
from qplan.solvers.capacity import planner
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.candidates import Candidates, candidates
from qplan.solvers.capacity.problem import CapacityResult
from qplan.solvers.fleet import planning
from qplan.solvers.fleet.arrivals import Recorded
from qplan.solvers.fleet.asking import Asked, ask_fleet
from qplan.solvers.fleet.problem import FleetResult
from qplan.solvers.fleet.replay import PlannedFleet
from qplan.solvers.fleet.tighten import Tightened, tighten
from qplan.solvers.fleet.verify import REQUESTS

MIP_GAP = 1e-3
"""Of plans by period that are made again and again: far below what a verification changes."""


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedAnswer:
    """A plan, and how it came to hold (or not: then the verification says where it falls short).

    Attributes
    ----------
    tightened
        ``None`` where there is no plan.
    """

    answer: planner.Answer
    tightened: Tightened[CapacityResult] | None


def verified_capacity(
    ask: CapacityAsk,
    *,
    solver: str = "highs",
    time_limit_s: float = planner.DEFAULT_TIME_LIMIT_S,
    why: bool = False,
    requests: int = REQUESTS,
    seed: int = 0,
) -> VerifiedAnswer:
    """Find the fleet for `ask` that holds in simulation.

    Parameters
    ----------
    solver, time_limit_s, why
        As of :func:`~qplan.solvers.capacity.planner.plan_capacity`; the time is for each of the plans made.
    requests, seed
        As of :func:`~qplan.solvers.fleet.tighten.tighten`.

    Raises
    ------
    InputError
        The profiles hold nothing of what was asked for, an SLO is on gaps between tokens, or numba is missing.
    """
    try:
        found = candidates(ask)

        def with_less(factor: Floats) -> Candidates:
            return replace(found, saturation_qps=found.saturation_qps * factor[0])

        made = tighten(
            np.ones((1, len(found.deployments)), bool),
            lambda factor: planner.solved(ask, with_less(factor), solver=solver, time_limit_s=time_limit_s),
            lambda result: capacity_fleet(ask, found, result),
            requests=requests,
            seed=seed,
        )
    except InfeasibleError as error:
        return VerifiedAnswer(planner.Answer(planner.no_plan(ask, error, solver)), None)
    return VerifiedAnswer(planner.answered(ask, with_less(made.factor), made.result, solver=solver, why=why), made)


def verified_fleet(
    demand: Demand,
    *,
    solver: str = "highs",
    time_limit_s: float = planning.DEFAULT_TIME_LIMIT_S,
    confidence: float | None = None,
    requests: int = REQUESTS,
    seed: int = 0,
) -> planning.FleetAnswer:
    """Find the fleet by period for `demand` that holds in simulation; its plan says what it reached.

    Parameters
    ----------
    solver, time_limit_s, confidence
        As of :func:`~qplan.solvers.fleet.planning.plan_fleet`; the time is for each of the plans made.
    requests, seed
        As of :func:`~qplan.solvers.fleet.tighten.tighten`.

    Raises
    ------
    InputError
        As :func:`verified_capacity`.
    """
    try:
        asked = ask_fleet(demand, confidence=confidence)
        capacity_qps = asked.problem.capacity_qps

        def less(factor: Floats) -> Asked:
            return asked.with_capacity(capacity_qps * factor[asked.problem.bucket_class])

        made = tighten(
            np.stack([(capacity_qps[asked.buckets.of_class(k)] > 0).any(axis=0) for k in range(len(demand.classes))]),
            lambda factor: planning.solved(less(factor), solver=solver, time_limit_s=time_limit_s, mip_gap=MIP_GAP),
            _answered_fleet,
            requests=requests,
            seed=seed,
        )
    except InfeasibleError as error:
        return planning.FleetAnswer(planning.no_plan(demand, error, solver))
    return replace(made.result, plan=replace(made.result.plan, verification=made.to_json()))


def _answered_fleet(answer: planning.FleetAnswer) -> PlannedFleet:
    assert answer.asked is not None
    assert answer.result is not None
    return asked_fleet(answer.asked, answer.result)


def capacity_fleet(ask: CapacityAsk, found: Candidates, result: CapacityResult) -> PlannedFleet:
    """Return the fleet of a plan for one rate: one class, not cut into buckets, one period."""
    lengths, weights = _kinds([ask.workload])
    return PlannedFleet(
        classes=(ask.workload.name,),
        slos=(ask.slos,),
        bucket_class=np.zeros(1, np.intp),
        kind_bucket=np.zeros(len(weights), np.intp),
        input_tokens=lengths[:, 0],
        output_tokens=lengths[:, 1],
        rate_qps=(ask.rate_qps * weights)[:, None],
        options=tuple(one.name for one in found.deployments),
        replicas=_replicas(found.deployments, found.steps, result.counts > 0),
        counts=result.counts[:, None],
        share=result.assignment[:, :, None],
        available=np.ones(len(found.deployments)),
        recorded=(None,),
    )


def asked_fleet(asked: Asked, result: FleetResult) -> PlannedFleet:
    """Return the fleet of a plan by period, with the demand's own SLOs."""
    buckets, problem = asked.buckets, asked.problem
    lengths, weights = _kinds(buckets.mixes)
    kind_bucket = np.repeat(np.arange(len(buckets)), [len(mix.buckets) for mix in buckets.mixes])
    pools = np.array([pool.availability for pool in asked.pools])
    return PlannedFleet(
        classes=problem.classes,
        slos=tuple(one.slos for one in asked.demand.classes),
        bucket_class=problem.bucket_class,
        kind_bucket=kind_bucket,
        input_tokens=lengths[:, 0],
        output_tokens=lengths[:, 1],
        rate_qps=problem.rate_qps[kind_bucket] * weights[:, None],
        options=problem.options,
        replicas=_replicas(asked.deployments, asked.steps, result.counts.sum(axis=1) > 0),
        counts=result.counts,
        share=result.share,
        available=pools[problem.pool],
        recorded=tuple(_recorded(asked, k) for k in range(len(problem.classes))),
    )


def _recorded(asked: Asked, k: int) -> Recorded | None:
    """Return the trace of a class, its requests in the plan's buckets; lengths that it has not are drawn."""
    one, mine = asked.demand.classes[k], asked.buckets.of_class(k)
    if one.trace is None or not one.trace.times_s:
        return None
    bucket_of = {(kind.input_tokens, kind.output_tokens): b for b in mine for kind in asked.buckets.mixes[b].buckets}
    every, times = one.workload.buckets, np.array(one.trace.times_s)
    if one.trace.lengths:
        given, made, kinds = np.array(one.trace.lengths).T
    else:
        kinds = np.random.default_rng(0).choice(len(every), len(times), p=[kind.weight for kind in every])
        lengths = np.array([(kind.input_tokens, kind.output_tokens) for kind in every])
        given, made = np.maximum(np.rint(lengths[kinds]), 1).astype(np.int64).T
    buckets = np.array([bucket_of[kind.input_tokens, kind.output_tokens] for kind in every])[kinds]
    length_s = float(times[-1] * len(times) / max(len(times) - 1, 1))  # the first comes again a mean gap after the last
    return Recorded(times, length_s, buckets, given, made, one.trace.by_period)


def _kinds(mixes: Sequence[Workload]) -> tuple[Ints, Floats]:
    """Return whole lengths, (J, 2), and the share of its mix, (J,), of each kind of request of all mixes."""
    every = [bucket for mix in mixes for bucket in mix.buckets]
    lengths = np.array([(bucket.input_tokens, bucket.output_tokens) for bucket in every])
    return np.maximum(np.rint(lengths).astype(np.int64), 1), np.array([bucket.weight for bucket in every])


def _replicas(deployments: Sequence[Deployment], steps: StepTimes, used: Bools) -> list[Replica | None]:
    return [Replica.of(one, grid_of(steps, d)) if used[d] else None for d, one in enumerate(deployments)]
