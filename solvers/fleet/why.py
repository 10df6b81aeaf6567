"""Why a fleet plan is as it is, in names: what :mod:`qplan.solvers.fleet.explain` finds, as plain data for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.demand import MEASURES
from qplan.core.errors import InfeasibleError
from qplan.core.units import format_duration
from qplan.models.steptimes import Bools
from qplan.solvers.fleet.asking import Asked, ask_fleet
from qplan.solvers.fleet.explain import explain, saved, what_to_measure
from qplan.solvers.fleet.problem import FleetProblem, FleetResult
from qplan.solvers.fleet.relax import Prices

_LOOSER = 1.1  # factor on an SLO whose worth is asked for
_NOISE = 1e-4  # share of the objective below which a saving is not worth a word
_DOUBTED = 4  # deployments in use whose predictions are doubted, those with most replica-hours first
_RUNNERS_UP_S, _MEASURE_S, _SLO_S = 5.0, 8.0, 4.0  # at most, on any machine


@dataclass(frozen=True, slots=True)
class OtherFleet:
    """A fleet of another kind: what it does without, how much more it takes, and its most replicas by option."""

    without: str
    premium: float
    replicas: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A prediction that could be wrong: what the best fleet would then be.

    Attributes
    ----------
    moved
        Share of the best fleet's replica-hours that it would then do without, were replicas divisible.
    regret
        Share of the objective that it would then save, likewise; below 0 where keeping the demand served costs more.
        ``None`` where no fleet could.
    """

    what: str
    moved: float
    regret: float | None


@dataclass(frozen=True, slots=True)
class FleetExplanation:
    """What stands behind a fleet plan; worths are in units of the objective over the horizon.

    Attributes
    ----------
    binding
        What has no room left, in words.
    worth_of_gpu
        Saved by one more GPU of a pool, were replicas divisible; only pools that bind.
    worth_of_kw
        Saved by one more kW under the power cap in every period, likewise.
    worth_of_quality
        Saved by a floor on mean quality that is one point lower, by class, likewise.
    worth_of_slo
        Saved by each millisecond of an SLO, likewise, taken over one that is looser by a tenth.
    runner_ups
        The fleets within 5 %, or else the nearest; best first.
    measure_next
        Predictions that would change the plan were they wrong, those that change it most first.
    """

    unit: str
    binding: tuple[str, ...]
    worth_of_gpu: Mapping[str, float]
    worth_of_kw: float
    worth_of_quality: Mapping[str, float]
    worth_of_slo: Mapping[str, float]
    runner_ups: tuple[OtherFleet, ...]
    measure_next: tuple[Doubt, ...]
    rejected: Mapping[str, int]


def explained(asked: Asked, result: FleetResult, *, solver: str) -> FleetExplanation:
    """Explain the fleet that `result` found for what was `asked`."""
    problem = asked.problem
    found = explain(problem, result, backend=solver, time_limit_s=_RUNNERS_UP_S)
    names = [one.name for one in asked.pools]
    prices = found.prices
    measures = [name for name, weight in asked.demand.objective if weight]
    return FleetExplanation(
        unit=MEASURES[measures[0]] if len(measures) == 1 else "of the objective",
        binding=tuple(_binding(asked, found.binding.gpus, found.binding.power))
        + tuple(f"mean quality of {problem.classes[k]}" for k in np.flatnonzero(found.binding.quality))
        + tuple(f"limit on {name}" for name in found.binding.at_most),
        worth_of_gpu={}
        if prices is None
        else {name: worth for name, worth in zip(names, prices.gpu.tolist(), strict=True) if worth > 1e-9},
        worth_of_kw=0.0 if prices is None else 1000 * float(prices.power.sum()),
        worth_of_quality={}
        if prices is None
        else {one: 0.01 * worth for one, worth in zip(problem.classes, prices.quality.tolist(), strict=True) if worth},
        worth_of_slo={} if prices is None else _worth_of_slos(asked, prices, solver),
        runner_ups=tuple(
            OtherFleet(
                other.without,
                other.premium,
                {problem.options[d]: int(n) for d, n in enumerate(other.result.counts.max(axis=1)) if n},
            )
            for other in found.runners_up
        ),
        measure_next=tuple(
            Doubt(one.what, one.moved, one.regret)
            for one in what_to_measure(problem, _errors(asked, result), backend=solver, time_limit_s=_MEASURE_S)
        ),
        rejected=asked.rejected,
    )


def _binding(asked: Asked, gpus: Bools, power: Bools) -> Iterator[str]:
    starts = np.cumsum([0.0, *asked.demand.hours[:-1]])

    def when(hours: Bools) -> str:
        return "always" if hours.all() else "from " + ", ".join(f"{start:g}h" for start in starts[hours])

    for pool, hours in zip(asked.pools, gpus, strict=True):
        if hours.any():
            yield f"GPUs of {pool.name}: {when(hours)}"
    if power.any():
        yield f"power cap: {when(power)}"


def _worth_of_slos(asked: Asked, prices: Prices, solver: str) -> dict[str, float]:
    """Return what a millisecond more of each SLO saves, where it saves anything."""
    worth = {}
    for k, one in enumerate(asked.demand.classes):
        for n, slo in enumerate(one.slos):
            looser = replace(slo, threshold_s=slo.threshold_s * _LOOSER)
            classes = list(asked.demand.classes)
            classes[k] = replace(one, slos=(*one.slos[:n], looser, *one.slos[n + 1 :]))
            try:
                other = ask_fleet(replace(asked.demand, classes=tuple(classes)), confidence=asked.confidence).problem
            except InfeasibleError:
                continue
            step_ms = 1000 * (looser.threshold_s - slo.threshold_s)
            gain = saved(prices, other, backend=solver, time_limit_s=_SLO_S)
            if gain is not None and gain > _NOISE * prices.bound:
                name = f"{one.name}: {slo.metric.upper()} p{slo.percentile:g}, {format_duration(slo.threshold_s)}"
                worth[name] = gain / step_ms
    return worth


def _errors(asked: Asked, result: FleetResult) -> Iterator[tuple[str, FleetProblem]]:
    """Yield the problem as it were if a deployment in use decoded as slowly, or as fast, as its error allows."""
    if asked.known_error is None:
        return
    band = asked.known_error["measured_over_predicted"]["tpot"]
    hours = result.counts @ asked.problem.hours
    for d in np.argsort(-hours, kind="stable")[: min(_DOUBTED, np.count_nonzero(hours))]:
        same = np.array([one.name == asked.deployments[d].name for one in asked.deployments])
        for ratio, word in ((band["upper"], "slower"), (band["lower"], "faster")):
            capacity = np.where(same, asked.problem.capacity_qps / ratio, asked.problem.capacity_qps)
            what = f"{asked.deployments[d].name} {abs(ratio - 1):.0%} {word} than predicted"
            yield what, replace(asked.problem, capacity_qps=capacity)
