"""From a demand to a fleet plan: state it, solve it, and say what the fleet is predicted to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.demand import Demand
from qplan.core.errors import InfeasibleError, InputError
from qplan.core.fleetplan import FleetPlan, Group, Period, PlannedBucket, PlannedOption, Totals
from qplan.core.plan import Assumption
from qplan.solvers.capacity.planner import doubts, graded, mean_quality, out_of_time, price_assumptions
from qplan.solvers.fleet.asking import Asked, ask_fleet
from qplan.solvers.fleet.measures import kwh_used
from qplan.solvers.fleet.obstacles import obstacle
from qplan.solvers.fleet.pareto import pareto
from qplan.solvers.fleet.predicted import Predicted, predict
from qplan.solvers.fleet.problem import FleetResult
from qplan.solvers.fleet.solve import solve_fleet

DEFAULT_TIME_LIMIT_S = 60.0
MIP_GAP = 1e-4

Groups = Mapping[tuple[int, int], Predicted]


@dataclass(frozen=True, slots=True, eq=False)
class FleetAnswer:
    """A plan, and the arrays behind it, which are ``None`` where there is no fleet."""

    plan: FleetPlan
    asked: Asked | None = None
    result: FleetResult | None = None


def plan_fleet(
    demand: Demand,
    *,
    solver: str = "highs",
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    confidence: float | None = None,
) -> FleetAnswer:
    """Find the fleet by period for `demand`.

    Parameters
    ----------
    solver
        Name of a solver backend: ``highs``, ``pulp:cbc`` ...
    time_limit_s
        When the time is up the best fleet found is returned as ``feasible``, with its proven gap.
    confidence
        Probability with which SLOs are to hold despite the profiles' errors; the predictions themselves if ``None``.

    Returns
    -------
    FleetAnswer
        Its plan has status ``infeasible``, a reason and the nearest feasible changes where there is no fleet.

    Raises
    ------
    InputError
        When the profiles hold nothing of what was asked for.
    """
    try:
        asked = ask_fleet(demand, confidence=confidence)
        return solved(asked, solver=solver, time_limit_s=time_limit_s)
    except InfeasibleError as error:
        return FleetAnswer(no_plan(demand, error, solver))


def solved(asked: Asked, *, solver: str, time_limit_s: float, mip_gap: float = MIP_GAP) -> FleetAnswer:
    """Solve what was asked.

    Raises
    ------
    InfeasibleError
        When no fleet does it, or none was found in time.
    """
    result = solve_fleet(asked.problem, backend=solver, time_limit_s=time_limit_s, mip_gap=mip_gap)
    if result.status == "infeasible":
        raise obstacle(asked, solver)
    if result.status == "no-solution":
        raise out_of_time(solver, time_limit_s)
    return FleetAnswer(fleet_plan(asked, result), asked, result)


def front(
    demand: Demand,
    measures: Sequence[str],
    *,
    solver: str = "highs",
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    confidence: float | None = None,
) -> list[FleetPlan]:
    """Return plans of which none is better than another in every one of `measures`.

    Raises
    ------
    InputError
        For measures that are unknown or too few, or of which the demand says nothing.
    InfeasibleError
        When there is no fleet at all.
    """
    if "carbon" in measures and not any(demand.carbon):
        raise InputError("--pareto: carbon needs the g CO2e/kWh of the electricity; add 'energy: {carbon: ...}'")
    asked = ask_fleet(demand, confidence=confidence, needs_power=bool({"energy", "carbon"} & set(measures)))
    found = pareto(asked.problem, measures, backend=solver, time_limit_s=time_limit_s, mip_gap=MIP_GAP)
    if not found:
        raise obstacle(asked, solver)
    plans = [fleet_plan(asked, result) for result in found]
    return [plan for plan in plans if not any(_better(other, plan, measures) for other in plans)]


def _better(one: FleetPlan, other: FleetPlan, measures: Sequence[str]) -> bool:
    """Whether a plan is at least as good in all measures and better in one, by what it is predicted to take.

    The solver counts energy in proportion to load; what is predicted of its fleets can differ in order.
    """
    signs = [-1.0 if name == "quality" else 1.0 for name in measures]
    mine, theirs = (
        [sign * (plan.measures[name] or 0.0) for sign, name in zip(signs, measures, strict=True)]
        for plan in (one, other)
    )
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def fleet_plan(asked: Asked, result: FleetResult) -> FleetPlan:
    """Say what the fleet of `result` is, does and takes."""
    demand = asked.demand
    groups = predict(asked, result)
    used = np.flatnonzero(result.counts.any(axis=1)).tolist()
    periods = tuple(_period(asked, result, groups, h) for h in range(len(demand.hours)))
    kwh = _kwh(asked, result, periods)
    totals = _totals(asked, result, groups, kwh)
    deployments = [asked.deployments[d] for d in used]
    predicted = [latency for one in groups.values() for seen in one.latency.values() for latency in seen.predicted]
    grades = [row[d] for row in asked.grades for d in used]
    own_prices = {pool.name for pool in demand.pools}
    return FleetPlan(
        status=result.status,
        name=demand.name,
        hours=demand.horizon_hours,
        buckets=tuple(
            PlannedBucket(demand.classes[k].name, mix.mean_input_tokens, mix.mean_output_tokens, float(weight))
            for k, mix, weight in zip(
                asked.buckets.request_class, asked.buckets.mixes, asked.buckets.weight, strict=True
            )
        ),
        options=tuple(_option(asked, d) for d in used),
        periods=periods,
        bought={pool.name: int(n) for pool, n in zip(asked.pools, result.bought, strict=True) if pool.committed},
        totals=totals,
        objective_name=objective_name(demand),
        objective=result.objective,
        bound=result.bound,
        gap=result.gap,
        solver=result.backend,
        solve_s=result.seconds,
        energy_note="GPUs alone, without their hosts" if kwh is not None else f"unknown: {asked.energy_note}",
        provenance=tuple(dict.fromkeys(asked.provenance[d] for d in used)),
        assumptions=demand.assumptions
        + tuple(_taken(asked))
        + price_assumptions([one for one, d in zip(deployments, used, strict=True) if not own_prices]),
        warnings=doubts(deployments, asked.known_error, predicted)
        + tuple(dict.fromkeys(warning for grade in grades if grade for warning in grade.warnings)),
    )


def _taken(asked: Asked) -> Iterator[Assumption]:
    """Yield what the plan takes for granted."""
    if asked.confidence is None:
        text = "none: SLOs are planned by the predictions themselves, whatever their error"
        yield Assumption("confidence", text, "--confidence 0.95")
    if len(asked.buckets) > len(asked.demand.classes):
        text = "by class and length of prompt and answer: the router must expect the answer's length"
        yield Assumption("routing", text, "classes")


def no_plan(demand: Demand, error: InfeasibleError, solver: str) -> FleetPlan:
    """Return the plan that says why there is none."""
    return FleetPlan(
        status="infeasible",
        name=demand.name,
        hours=demand.horizon_hours,
        buckets=(),
        options=(),
        periods=(),
        bought={},
        totals=None,
        objective_name=objective_name(demand),
        objective=None,
        bound=None,
        gap=None,
        solver=solver,
        solve_s=0.0,
        energy_note="no fleet, no energy",
        provenance=(),
        assumptions=demand.assumptions,
        reason=str(error),
        constraint=error.constraint,
        nearest=error.nearest,
    )


def objective_name(demand: Demand) -> str:
    """Return the objective in words: ``cost``, ``cost + 0.1 carbon``, ``cost, then carbon``."""
    weighted = (name if weight == 1 else f"{weight:g} {name}" for name, weight in demand.objective if weight)
    return ", then ".join([" + ".join(weighted), *demand.then])


def _option(asked: Asked, d: int) -> PlannedOption:
    one = asked.deployments[d]
    classes = asked.problem.classes
    grades = {name: row[d] for name, row in zip(classes, asked.grades, strict=True)}
    return PlannedOption(
        name=asked.problem.options[d],
        model=one.model.name,
        quantization=str(one.quantization),
        gpu=one.gpu.name,
        tp=one.tp,
        engine=one.engine,
        engine_version=one.engine_version,
        pool=asked.pools[asked.problem.pool[d]].name,
        quality={name: graded(grade) for name, grade in grades.items() if grade is not None},
        saturation_qps={name: float(asked.saturation_qps(k)[d]) for k, name in enumerate(classes)},
        idle_w=asked.idle_w(d),
        provenance=asked.provenance[d],
    )


def _period(asked: Asked, result: FleetResult, groups: Groups, h: int) -> Period:
    demand, problem = asked.demand, asked.problem
    present = np.flatnonzero(result.counts[:, h]).tolist()
    gpus: Counter[str] = Counter()
    for d in present:
        gpus[asked.pools[problem.pool[d]].name] += int(problem.gpus[d] * result.counts[d, h])
    rows = tuple(_group(asked, result, groups[d, h], d, h) for d in present)
    watts = [row.power_w for row in rows]
    return Period(
        start_h=sum(demand.hours[:h]),
        hours=demand.hours[h],
        rate_qps={one.name: one.rate_qps[h] for one in demand.classes},
        gpus=dict(gpus),
        groups=rows,
        power_w=None if None in watts else sum(filter(None, watts)),
    )


def _group(asked: Asked, result: FleetResult, one: Predicted, d: int, h: int) -> Group:
    problem = asked.problem
    count, starts = int(result.counts[d, h]), int(result.starts[d, h])
    pool, hours = problem.pool[d], problem.hours[h]
    watts = None if one.power_w is None else one.power_w * count
    paid_h = 0.0 if problem.committed[pool] else count * hours + starts * problem.start_s[d] / 3600
    cost = paid_h * problem.gpus[d] * problem.gpu_price[pool, h] + starts * problem.start_cost[d]
    cost += (watts or 0.0) * hours / 1000 * problem.energy_price[h]
    load = problem.load(h)[:, d] @ result.share[:, d, h] / count
    return Group(
        option=problem.options[d],
        count=count,
        starts=starts,
        cost=float(cost),
        load_qps=one.load_qps,
        utilisation=float(load),
        power_w=watts,
        shares=tuple(result.share[:, d, h].tolist()),
        latency=one.latency,
    )


def _kwh(asked: Asked, result: FleetResult, periods: tuple[Period, ...]) -> tuple[float, ...] | None:
    """Return the energy of each period, starts included; ``None`` where the power of some replicas is unknown."""
    starting = asked.problem.start_s * asked.problem.idle_w @ result.starts / 3.6e6
    kwh = [
        period.power_w * period.hours / 1000 + float(extra)
        for period, extra in zip(periods, starting, strict=True)
        if period.power_w is not None
    ]
    return tuple(kwh) if len(kwh) == len(periods) else None


def _totals(asked: Asked, result: FleetResult, groups: Groups, kwh: tuple[float, ...] | None) -> Totals:
    demand, problem = asked.demand, asked.problem
    fixed = dict(result.measures)
    cost = fixed["cost"]
    if kwh is not None and any(demand.energy_price):
        linear = kwh_used(problem, result.counts.astype(float), result.starts.astype(float), result.share)
        cost += float(problem.energy_price @ (np.array(kwh) - linear))
    requests = problem.requests[:, None, :] * result.share  # (B, D, H)
    quality, attainment = {}, {}
    for k, one in enumerate(demand.classes):
        mine = requests[asked.buckets.of_class(k)].sum(axis=0)
        by_option = mine.sum(axis=1)
        quality[one.name] = mean_quality(
            [(float(by_option[d]), graded(grade)) for d, grade in enumerate(asked.grades[k]) if by_option[d] and grade]
        )
        sent = [(float(mine[d, h]), seen.latency[one.name]) for (d, h), seen in groups.items() if mine[d, h]]
        attainment[one.name] = sum(n * seen.attainment for n, seen in sent) / sum(n for n, _ in sent)
    has_carbon = kwh is not None and any(demand.carbon)
    return Totals(
        cost=float(cost),
        energy_kwh=None if kwh is None else sum(kwh),
        carbon_kg=float(np.array(kwh) @ problem.carbon / 1000) if has_carbon else None,
        gpu_hours=fixed["gpus"],
        quality=quality,
        attainment=attainment,
    )
