"""A plan of a fleet by period on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from qplan.core.demand import MEASURES
from qplan.core.units import format_duration
from qplan.report.output import console, facts_table, print_json
from qplan.report.plans import print_assumptions, print_refusal
from qplan.report.verification import print_verification

if TYPE_CHECKING:
    from rich.table import Table

    from qplan.core.fleetplan import FleetPlan, Group, Period
    from qplan.solvers.fleet.why import Doubt, FleetExplanation

_MOST_COLUMNS = 24  # spans of periods that a table still shows one by one


def print_fleet_plan(plan: FleetPlan, explanation: FleetExplanation | None = None, *, as_json: bool) -> None:
    """Print `plan` as JSON or as tables, with its `explanation` if there is one."""
    if as_json:
        extra = {} if explanation is None else {"explanation": asdict(explanation)}
        print_json({**plan.to_json(), **extra})
        return
    out = console()
    if plan.totals is None:
        print_refusal(out, plan)
    else:
        out.print(_fleet(plan))
        out.print(_facts(plan))
    if plan.verification is not None:
        print_verification(out, plan.verification)
    if explanation is not None:
        out.print("\n[bold]why this plan[/bold]")
        out.print(_explained(explanation))
    print_assumptions(out, plan)


def spans(plan: FleetPlan) -> list[tuple[Period, ...]]:
    """Join neighbouring periods that run the same replicas."""
    joined: list[list[Period]] = []
    for period in plan.periods:
        if joined and _counts(joined[-1][-1]) == _counts(period):
            joined[-1].append(period)
        else:
            joined.append([period])
    return [tuple(span) for span in joined]


def _counts(period: Period) -> dict[str, int]:
    return {group.option: group.count for group in period.groups}


def _fleet(plan: FleetPlan) -> Table:
    """Return the replicas of each option, a row, in each span of periods, a column; of many spans, their range."""
    from rich import box
    from rich.table import Table

    columns = spans(plan)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("replicas of" if len(columns) == 1 else "replicas of, by hour")
    table.add_column("busy", justify="right")
    if len(columns) > _MOST_COLUMNS:
        for title in ("least", "mean", "most"):
            table.add_column(title, justify="right")
    else:
        for span in columns:
            table.add_column(_hours(span), justify="right")
    for option in plan.options:
        groups = [_of(period, option.name) for period in plan.periods]
        served = sum(group.utilisation * group.count for group in groups if group)
        busy = served / max(sum(group.count for group in groups if group), 1)
        counts = [_of(span[0], option.name) for span in columns]
        table.add_row(option.name, f"{busy:.0%}", *_cells([group.count if group else 0 for group in counts], groups))
    rates = [[sum(period.rate_qps.values()) for period in span] for span in columns]
    if len(columns) > _MOST_COLUMNS:
        every = [rate for span in rates for rate in span]
        table.add_row("requests/s", "", f"{min(every):.3g}", f"{sum(every) / len(every):.3g}", f"{max(every):.3g}")
    else:
        table.add_row("requests/s, at most", "", *(f"{max(span):.3g}" for span in rates))
    return table


def _cells(by_span: Sequence[int], groups: Sequence[Group | None]) -> list[str]:
    if len(by_span) > _MOST_COLUMNS:
        every = [group.count if group else 0 for group in groups]
        return [str(min(every)), f"{sum(every) / len(every):.1f}", str(max(every))]
    return [str(count) if count else "·" for count in by_span]


def _of(period: Period, option: str) -> Group | None:
    return next((group for group in period.groups if group.option == option), None)


def _hours(span: Sequence[Period]) -> str:
    first, last = span[0], span[-1]
    end = last.start_h + last.hours
    return f"{first.start_h:g}–{end:g}h" if end - first.start_h > 1 else f"{first.start_h:g}h"


def _facts(plan: FleetPlan) -> Table:
    assert plan.totals is not None
    totals = plan.totals
    table = facts_table()
    days = plan.hours / 24
    money = f"[bold]{totals.cost:,.2f} $[/bold]" + ("" if days == 1 else f", {totals.cost / days:,.2f} $/day")
    gpus = ", ".join(f"{count} x {pool}" for pool, count in plan.most_gpus.items())
    table.add_row("in total", f"{money} for {plan.hours:g} h, [bold]{totals.gpu_hours:,.1f} GPU-hours[/bold]")
    table.add_row("GPUs, at most", gpus)
    if plan.bought:
        table.add_row("reserved", ", ".join(f"{count} x {pool}" for pool, count in plan.bought.items()))
    starts = sum(group.starts for period in plan.periods for group in period.groups)
    if starts:
        table.add_row("switching", f"{starts} starts of a replica")
    if totals.energy_kwh is not None:
        carbon = "" if totals.carbon_kg is None else f", {totals.carbon_kg:,.1f} kg CO2e"
        table.add_row("energy", f"{totals.energy_kwh:,.1f} kWh{carbon} ({plan.energy_note})")
    else:
        table.add_row("energy", plan.energy_note)
    for name, attainment in totals.attainment.items():
        quality = totals.quality[name]
        said = f"{attainment:.1%} of requests predicted within the SLOs; quality {quality.value:.1%} of 16 bits"
        table.add_row(name, f"{said}, between {quality.lower:.1%} and {quality.upper:.1%}")
    unit = MEASURES.get(plan.objective_name, "")
    bound = "none" if plan.bound is None else f"{plan.bound:,.5g} {unit}".strip()
    gap = "unknown" if plan.gap is None else f"{max(plan.gap, 0):.2%}"
    table.add_row(
        "proof",
        f"{plan.status}: {plan.objective:,.5g} {unit} ({plan.objective_name}), proven lower bound {bound}, gap {gap} "
        f"({plan.solver}, {format_duration(plan.solve_s)})",
    )
    if plan.objective_name == "cost" and round(plan.objective or 0.0, 2) != round(totals.cost, 2):
        table.add_row("", "the total counts energy by the predicted power, the proof in proportion to load")
    for number, source in enumerate(plan.provenance):
        table.add_row("numbers" if number == 0 else "", source)
    for warning in plan.warnings:
        table.add_row("[yellow]warning[/yellow]", warning)
    return table


def _doubted(doubt: Doubt) -> str:
    if doubt.regret is None:
        return "no fleet would carry the demand"
    saved = f"saves {doubt.regret:.1%}" if doubt.regret >= 0 else f"takes {-doubt.regret:.1%} more"
    return f"{doubt.moved:.0%} of the fleet would change; the best then {saved}"


def _explained(why: FleetExplanation) -> Table:
    table = facts_table()
    for what in why.binding:
        table.add_row("binds", what)
    for name, worth in why.worth_of_gpu.items():
        table.add_row("one more GPU", f"{name}: would take {worth:.3g} {why.unit} off, were replicas divisible")
    if why.worth_of_kw > 0:
        table.add_row("one more kW", f"would take {why.worth_of_kw:.3g} {why.unit} off, were replicas divisible")
    for name, worth in why.worth_of_quality.items():
        table.add_row("a point of quality", f"{name}: a floor that is 1% lower would take {worth:.3g} {why.unit} off")
    for name, worth in why.worth_of_slo.items():
        text = f"{name}: a millisecond more would take {worth:.3g} {why.unit} off, were replicas divisible"
        table.add_row("an SLO's worth", text)
    for other in why.runner_ups:
        fleet = " + ".join(f"{count} x {name}" for name, count in other.replicas.items())
        table.add_row("runner-up", f"{other.premium:+.1%} without {other.without}: {fleet}")
    for doubt in why.measure_next:
        table.add_row("measure next", f"{doubt.what}: {_doubted(doubt)}")
    for reason, count in why.rejected.items():
        table.add_row("left out", f"{count} deployments: {reason}")
    return table
