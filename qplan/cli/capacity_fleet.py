"""What ``qplan capacity`` does with a demand: plan it, vary it, and draw what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from qplan.core.demand import Demand

_INFEASIBLE = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done with a demand."""

    solver: str
    time_limit_s: float
    confidence: float | None
    verify: bool
    explain: bool
    sweep: str | None
    pareto: str | None
    what_if: Sequence[str]
    plot: Path | None
    as_json: bool

    @property
    def beyond_one_plan(self) -> bool:
        """Whether more is wanted than the plan for one rate and why it is so."""
        return bool(self.sweep or self.pareto or self.what_if or self.plot or self.confidence)


def run(demand: Demand, wanted: Wanted) -> None:
    """Plan `demand` as wanted; exit with 3 where there is no plan."""
    from qplan.core.errors import InputError
    from qplan.report.figure_files import check_plot

    kinds = [name for name in ("sweep", "pareto", "what_if") if getattr(wanted, name)]
    if len(kinds) > 1:
        raise InputError(
            f"{' and '.join('--' + name.replace('_', '-') for name in kinds)}: expected one of them at a time"
        )
    for name in ("verify", "explain"):
        if kinds and getattr(wanted, name):
            raise InputError(f"--{name}: goes with a single plan, not with --{kinds[0].replace('_', '-')}")
    if wanted.plot is not None:
        check_plot(wanted.plot)
    if wanted.sweep:
        _sweep(demand, wanted, wanted.sweep)
    elif wanted.pareto:
        _pareto(demand, wanted, wanted.pareto)
    elif wanted.what_if:
        _what_if(demand, wanted)
    else:
        _plan(demand, wanted)


def _plan(demand: Demand, wanted: Wanted) -> None:
    from qplan.report.figure_files import write_figure
    from qplan.report.fleet_plots import draw_fleet
    from qplan.report.fleetplans import print_fleet_plan
    from qplan.report.output import working
    from qplan.solvers.fleet.planning import plan_fleet
    from qplan.solvers.fleet.why import explained

    solver, seconds, confidence = wanted.solver, wanted.time_limit_s, wanted.confidence
    if wanted.verify:
        from qplan.solvers.fleet.verified import verified_fleet

        with working("planning, and simulating the plan"):
            answer = verified_fleet(demand, solver=solver, time_limit_s=seconds, confidence=confidence)
    else:
        with working("planning"):
            answer = plan_fleet(demand, solver=solver, time_limit_s=seconds, confidence=confidence)
    why = None
    if wanted.explain and answer.asked is not None and answer.result is not None:
        with working("planning with other predictions, prices and SLOs, to explain"):
            why = explained(answer.asked, answer.result, solver=solver)
    print_fleet_plan(answer.plan, why, as_json=wanted.as_json)
    if answer.result is None:
        raise typer.Exit(_INFEASIBLE)
    if wanted.plot is not None:
        write_figure(wanted.plot, draw_fleet(answer.plan))


def _sweep(demand: Demand, wanted: Wanted, text: str) -> None:
    from qplan.report.figure_files import write_figure
    from qplan.report.fleet_plots import draw_sweep
    from qplan.report.output import working
    from qplan.report.sweeps import print_sweep
    from qplan.solvers.fleet.sweep import parse_sweep, sweep

    rates = parse_sweep(text)
    with working(f"planning for {len(rates)} rates"):
        found = sweep(
            demand,
            rates,
            solver=wanted.solver,
            time_limit_s=wanted.time_limit_s,
            confidence=wanted.confidence,
        )
    points = [(point.peak_qps, point.answer.plan) for point in found]
    print_sweep(points, as_json=wanted.as_json)
    if all(plan.totals is None for _, plan in points):
        raise typer.Exit(_INFEASIBLE)
    if wanted.plot is not None:
        write_figure(wanted.plot, draw_sweep(points))


def _pareto(demand: Demand, wanted: Wanted, text: str) -> None:
    from qplan.report.figure_files import write_figure
    from qplan.report.fleet_plots import draw_front
    from qplan.report.output import working
    from qplan.report.sweeps import print_front
    from qplan.solvers.fleet.planning import front

    measures = [name.strip() for name in text.split(",")]
    with working("planning along the front"):
        plans = front(
            demand, measures, solver=wanted.solver, time_limit_s=wanted.time_limit_s, confidence=wanted.confidence
        )
    print_front(measures, plans, as_json=wanted.as_json)
    if wanted.plot is not None:
        write_figure(wanted.plot, draw_front(measures, plans))


def _what_if(demand: Demand, wanted: Wanted) -> None:
    from qplan.core.errors import InputError
    from qplan.report.output import working
    from qplan.report.sweeps import print_what_if
    from qplan.solvers.fleet.planning import plan_fleet
    from qplan.solvers.fleet.whatif import changed

    if wanted.plot is not None:
        raise InputError("--plot: draws a plan, a --sweep or a --pareto front, not a --what-if")
    demands = [demand, *(changed(demand, text) for text in wanted.what_if)]
    with working(f"planning as it is, and with {len(wanted.what_if)} changes"):
        plans = [
            plan_fleet(one, solver=wanted.solver, time_limit_s=wanted.time_limit_s, confidence=wanted.confidence).plan
            for one in demands
        ]
    print_what_if(plans[0], list(zip(wanted.what_if, plans[1:], strict=True)), as_json=wanted.as_json)
    if all(plan.totals is None for plan in plans):
        raise typer.Exit(_INFEASIBLE)


def overridden(demand: Demand, *, objective: str | None, spare: int | None, profiles: str | None) -> Demand:
    """Return the demand of a file with what flags say in its place."""
    if objective is not None:
        demand = replace(demand, objective=((objective, 1.0),), then=())
    if spare is not None:
        demand = replace(demand, spare=spare)
    return demand if profiles is None else replace(demand, profiles=profiles)
