"""From a capacity ask to a plan: candidates, the integer program, and what the chosen fleet is predicted to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InfeasibleError
from qplan.core.plan import Assumption, LatencyPrediction, Plan, Prediction, ReplicaGroup
from qplan.core.slo import METRICS
from qplan.models.power.energy import energy, fleet_power
from qplan.models.quality import Quality
from qplan.models.serving import LoadedReplicas
from qplan.models.sharing import SharingModel
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.candidates import Candidates, candidates
from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult
from qplan.solvers.capacity.solve import solve_capacity

if TYPE_CHECKING:
    from qplan.solvers.capacity.why import Explanation

DEFAULT_TIME_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan and, where there is one and it was asked for, why it is as it is."""

    plan: Plan
    explanation: Explanation | None = None


def plan_capacity(
    ask: CapacityAsk, *, solver: str = "highs", time_limit_s: float = DEFAULT_TIME_LIMIT_S, why: bool = False
) -> Answer:
    """Find the fleet for `ask` that costs least (or takes the fewest GPUs).

    Parameters
    ----------
    solver
        Name of a solver backend: ``highs``, ``pulp:cbc`` ...
    time_limit_s
        When the time is up the best fleet found is returned as ``feasible``, with its proven gap.

    why
        Also say why: a few more solves.

    Returns
    -------
    Answer
        Its plan has status ``infeasible``, a reason and the nearest feasible changes where there is no fleet.

    Raises
    ------
    InputError
        When the profiles hold nothing of what was asked for.
    """
    try:
        found = candidates(ask)
        result = solved(ask, found, solver=solver, time_limit_s=time_limit_s)
    except InfeasibleError as error:
        return Answer(no_plan(ask, error, solver))
    return answered(ask, found, result, solver=solver, why=why)


def solved(ask: CapacityAsk, found: Candidates, *, solver: str, time_limit_s: float) -> CapacityResult:
    """Find the fleet of these candidates.

    Raises
    ------
    InfeasibleError
        When there is none, or none was found in time.
    """
    problem = capacity_problem(ask, found)
    result = solve_capacity(problem, backend=solver, time_limit_s=time_limit_s)
    if result.status == "infeasible":
        from qplan.solvers.capacity.obstacles import inventory_obstacle

        raise inventory_obstacle(ask, problem, solver)
    if result.status == "no-solution":
        raise out_of_time(solver, time_limit_s)
    return result


def out_of_time(solver: str, time_limit_s: float) -> InfeasibleError:
    """Say that no fleet was found in time."""
    return InfeasibleError(
        f"{solver} found no fleet within {time_limit_s:g} s",
        constraint="time",
        nearest=("--time-limit with more seconds",),
    )


def answered(ask: CapacityAsk, found: Candidates, result: CapacityResult, *, solver: str, why: bool) -> Answer:
    """Say what the fleet of `result` is and does, and, if asked, why it is as it is."""
    plan = _plan(ask, found, result)
    if not why:
        return Answer(plan)
    from qplan.solvers.capacity.why import explained

    return Answer(plan, explained(capacity_problem(ask, found), result, found.rejected, solver))


def capacity_problem(ask: CapacityAsk, found: Candidates) -> CapacityProblem:
    """Write `ask` over its candidates as arrays; one request class, so every array of classes has K = 1."""
    types = sorted({one.gpu.name for one in found.deployments})
    inventory = ask.inventory or {}
    return CapacityProblem(
        classes=(ask.workload.name,),
        deployments=tuple(one.name for one in found.deployments),
        gpu_types=tuple(types),
        rate_qps=np.array([ask.rate_qps]),
        capacity_qps=found.saturation_qps[None, :],
        gpu_type=np.array([types.index(one.gpu.name) for one in found.deployments]),
        gpus=np.array([one.tp for one in found.deployments]),
        cost_per_hour=np.array([one.price_per_hour for one in found.deployments]),
        quality=np.array([[grade.value for grade in found.quality]]),
        inventory=np.array([inventory.get(name, np.inf if ask.inventory is None else 0.0) for name in types]),
        objective=ask.objective,
        spare=ask.spare,
    )


def _plan(ask: CapacityAsk, found: Candidates, result: CapacityResult) -> Plan:
    used = np.flatnonzero(result.counts)
    counts = result.counts[used]
    shares = result.assignment[0, used]
    load = ask.rate_qps * shares / counts
    deployments = [found.deployments[i] for i in used]
    steps = found.steps.take(used)
    loaded = SharingModel.of(deployments, steps).at(ask.workload, load)
    latencies = _latencies(ask, loaded, [found.errors[i] for i in used])
    burned = energy(deployments, steps, ask.workload, load, loaded)
    power = fleet_power(burned, counts.tolist())
    groups = tuple(
        _group(one, int(count), float(share), float(rate), found, int(i), tuple(row[n] for row in latencies))
        for n, (one, count, share, rate, i) in enumerate(zip(deployments, counts, shares, load, used, strict=True))
    )
    gpus: Counter[str] = Counter()
    for group in groups:
        gpus[group.gpu] += group.count * group.tp
    predicted = tuple(max(row, key=lambda one: one.value) for row in latencies)
    return Plan(
        status=result.status,
        objective_name=ask.objective,
        replicas=groups,
        gpus=dict(gpus),
        cost_per_hour=sum(group.count * group.cost_per_hour for group in groups),
        power_w=None if power is None else power.value,
        power_note="; ".join(dict.fromkeys(filter(None, burned.reasons)))
        if power is None
        else f"between {power.lower:.0f} and {power.upper:.0f} W ({power.basis})",
        quality=mean_quality([(group.share, group.quality) for group in groups]),
        predicted=predicted,
        headroom=min(group.headroom for group in groups),
        objective=result.objective,
        bound=result.bound,
        gap=result.gap,
        solver=result.backend,
        solve_s=result.seconds,
        provenance=tuple(dict.fromkeys(found.provenance[i] for i in used)),
        assumptions=ask.assumptions + price_assumptions(deployments),
        warnings=doubts(deployments, found.known_error, predicted)
        + tuple(dict.fromkeys(warning for i in used for warning in found.quality[i].warnings)),
    )


def no_plan(ask: CapacityAsk, error: InfeasibleError, solver: str) -> Plan:
    """Return the plan that says why there is none."""
    return Plan(
        status="infeasible",
        objective_name=ask.objective,
        replicas=(),
        gpus={},
        cost_per_hour=None,
        power_w=None,
        power_note="no fleet, no power",
        quality=None,
        predicted=(),
        headroom=None,
        objective=None,
        bound=None,
        gap=None,
        solver=solver,
        solve_s=0.0,
        provenance=(),
        assumptions=ask.assumptions,
        reason=str(error),
        constraint=error.constraint,
        nearest=error.nearest,
    )


def _group(
    deployment: Deployment,
    count: int,
    share: float,
    load_qps: float,
    found: Candidates,
    index: int,
    predicted: tuple[LatencyPrediction, ...],
) -> ReplicaGroup:
    return ReplicaGroup(
        deployment=deployment.name,
        model=deployment.model.name,
        quantization=str(deployment.quantization),
        gpu=deployment.gpu.name,
        tp=deployment.tp,
        engine=deployment.engine,
        engine_version=deployment.engine_version,
        count=count,
        cost_per_hour=deployment.price_per_hour,
        share=share,
        load_qps=load_qps,
        saturation_qps=float(found.saturation_qps[index]),
        quality=graded(found.quality[index]),
        predicted=predicted,
    )


def _latencies(
    ask: CapacityAsk, loaded: LoadedReplicas, errors: Sequence[Mapping[str, Any] | None]
) -> list[list[LatencyPrediction]]:
    """Predict each percentile with an SLO, and TTFT and TPOT at the default one: a row a metric, a column a group."""
    wanted = {(slo.metric, slo.percentile or ask.percentile): slo.threshold_s for slo in ask.slos}
    for metric in ("ttft", "tpot"):
        if all(metric != asked for asked, _ in wanted):
            wanted[metric, ask.percentile] = float("nan")
    table = []
    for (metric, percentile), threshold in sorted(
        wanted.items(), key=lambda item: (METRICS.index(item[0][0]), item[0][1])
    ):
        bands = [error_band(metric, error) for error in errors]
        slo = None if np.isnan(threshold) else threshold
        table.append(
            [
                LatencyPrediction(metric, percentile, float(value), float(value * low), float(value * high), slo)
                for value, (low, high) in zip(loaded.percentile(metric, percentile), bands, strict=True)
            ]
        )
    return table


def error_band(metric: str, known_error: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return the range of measured over predicted; E2E takes the wider of TTFT's and TPOT's; unbounded if unknown."""
    if known_error is None:
        return 0.0, float("inf")
    ratios = known_error["measured_over_predicted"]
    bands = [
        ratios[name] for name in (("ttft", "tpot") if metric == "e2e" else ("ttft",) if metric == "ttft" else ("tpot",))
    ]
    return min(1.0, *(band["lower"] for band in bands)), max(1.0, *(band["upper"] for band in bands))


def graded(grade: Quality) -> Prediction:
    """Return a deployment's quality as plans have it."""
    return Prediction(grade.value, grade.lower, grade.upper, grade.coverage, f"{grade.provenance}: {grade.source}")


def mean_quality(serving: Sequence[tuple[float, Prediction]]) -> Prediction:
    """Weigh the quality of what serves by the requests that it serves."""
    total = sum(weight for weight, _ in serving)

    def mean(field: str) -> float:
        return float(sum(weight * getattr(quality, field) for weight, quality in serving) / total)

    basis = "; ".join(dict.fromkeys(quality.basis for weight, quality in serving if weight > 0))
    return Prediction(mean("value"), mean("lower"), mean("upper"), None, basis)


def price_assumptions(deployments: Sequence[Deployment]) -> tuple[Assumption, ...]:
    """Say which prices the catalogue gave."""
    gpus = {one.gpu.name: one.gpu for one in deployments}
    return tuple(
        Assumption(
            f"price of {gpu.name}",
            f"{gpu.price_per_hour:.3f} $/h each ({gpu.price_source}, {gpu.price_date})",
            f"--price {gpu.name}=...",
        )
        for gpu in gpus.values()
        if gpu.price_date
    )


def doubts(
    deployments: Sequence[Deployment], known_error: Mapping[str, Any] | None, predicted: Sequence[LatencyPrediction]
) -> tuple[str, ...]:
    """Warn of profiles that nothing checks, intervals that leave their SLO, and prices that may not hold."""
    said = []
    checked = () if known_error is None else known_error["gpus"]
    unchecked = sorted({one.gpu.name for one in deployments} - set(checked))
    if known_error is None:
        said.append("the error of these profiles against real serving is unknown")
    elif unchecked:
        said.append(
            f"no end-to-end measurements check {', '.join(unchecked)}; the intervals are those of {', '.join(checked)}"
        )
    said += [
        f"the interval of {one.metric.upper()} p{one.percentile:g} reaches beyond its SLO: measure before relying on it"
        for one in predicted
        if one.slo is not None and one.slo < one.upper < float("inf")
    ]
    said += [
        f"the price of {one.gpu} is that of a machine with {one.gpu.price_instance_gpus} of them; TP{one.tp} needs a "
        "larger one, which can cost more per GPU"
        for one in deployments
        if one.gpu.price_instance_gpus is not None and one.tp > one.gpu.price_instance_gpus
    ]
    return tuple(dict.fromkeys(said))
