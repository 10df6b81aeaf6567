"""A capacity plan on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qplan.core.units import format_duration
from qplan.report.output import console, facts_table, print_json
from qplan.report.verification import print_verification

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qplan.core.fleetplan import FleetPlan
    from qplan.core.plan import LatencyPrediction, Plan, ReplicaGroup
    from qplan.solvers.capacity.why import Explanation


def print_plan(
    plan: Plan,
    explanation: Explanation | None = None,
    *,
    verification: Mapping[str, Any] | None = None,
    as_json: bool,
) -> None:
    """Print `plan` as JSON or as tables, with its `explanation` and `verification` if there are any."""
    if as_json:
        extra: dict[str, Any] = {} if explanation is None else {"explanation": asdict(explanation)}
        if verification is not None:
            extra["verification"] = dict(verification)
        print_json({**plan.to_json(), **extra})
        return
    out = console()
    if plan.status == "infeasible":
        print_refusal(out, plan)
    else:
        _print_fleet(out, plan)
    if verification is not None:
        print_verification(out, verification)
    if explanation is not None:
        _print_explanation(out, plan, explanation)
    print_assumptions(out, plan)


def print_refusal(out: Console, plan: Plan | FleetPlan) -> None:
    """Print why there is no plan, and the nearest changes with which there is one."""
    out.print(f"[bold red]No feasible plan[/bold red] ({plan.constraint}): {plan.reason}")
    for number, change in enumerate(plan.nearest):
        out.print(f"  {'nearest change' if number == 0 else '            or'}: [bold]{change}[/bold]")


def _print_fleet(out: Console, plan: Plan) -> None:
    assert plan.cost_per_hour is not None
    assert plan.quality is not None
    table = _grid("replicas", "deployment", "GPUs", "$/h", "req/s each", "of its limit", "quality")
    for latency in plan.predicted:
        table.add_column(f"{latency.metric.upper()} p{latency.percentile:g}", justify="right")
    for group in plan.replicas:
        table.add_row(*_cells(group))
    out.print(table)
    out.print()

    facts = facts_table()
    gpus = ", ".join(f"{count} x {name}" for name, count in plan.gpus.items())
    facts.add_row("fleet", f"[bold]{gpus}[/bold], [bold]{plan.cost_per_hour:.2f} $/h[/bold]")
    for latency in plan.predicted:
        facts.add_row(f"{latency.metric.upper()} p{latency.percentile:g}", _latency(latency))
    quality = plan.quality
    facts.add_row(
        "quality",
        f"{quality.value:.1%} of 16 bits, between {quality.lower:.1%} and {quality.upper:.1%} ({quality.basis})",
    )
    facts.add_row("headroom", f"{plan.headroom:.0%} of the rate at which the first SLO breaks is free")
    unit = "$/h" if plan.objective_name == "cost" else "GPUs"
    bound = "none" if plan.bound is None else f"{plan.bound:.4g} {unit}"
    gap = "unknown" if plan.gap is None else f"{max(plan.gap, 0):.2%}"
    facts.add_row(
        "proof",
        f"{plan.status}: {plan.objective:.4g} {unit}, proven lower bound {bound}, gap {gap} "
        f"({plan.solver}, {format_duration(plan.solve_s)})",
    )
    power = "unknown: " if plan.power_w is None else f"{plan.power_w:.0f} W, "
    facts.add_row("power", power + plan.power_note)
    for number, source in enumerate(plan.provenance):
        facts.add_row("numbers" if number == 0 else "", source)
    for warning in plan.warnings:
        facts.add_row("[yellow]warning[/yellow]", warning)
    out.print(facts)


def _print_explanation(out: Console, plan: Plan, why: Explanation) -> None:
    out.print("\n[bold]why this plan[/bold]")
    table = facts_table()
    table.add_row("one more request/s", f"costs {why.marginal_cost_per_qps:.3g} {why.unit}, were replicas divisible")
    whole = f"{why.whole_replicas_cost:.3g} {why.unit} of {plan.objective:.4g} are paid because replicas come whole"
    table.add_row("whole replicas", whole)
    for name, worth in why.worth_of_gpu.items():
        table.add_row("inventory binds", f"one more {name} would take {worth:.3g} {why.unit} off")
    for group in plan.replicas:
        for latency in group.predicted:
            if latency.slo is not None and latency.value > 0.9 * latency.slo:
                table.add_row("SLO binds", f"{latency.metric.upper()} p{latency.percentile:g} of {group.deployment}")
    for other in why.runner_ups:
        fleet = " + ".join(f"{count} x {name}" for name, count in other.replicas.items())
        more = f"{other.objective:.4g} {why.unit}, {other.objective / max(plan.objective or 0, 1e-12) - 1:+.1%}"
        table.add_row("runner-up", f"{fleet}: {more} (without {other.without})")
    for reason, count in why.rejected.items():
        table.add_row("left out", f"{count} deployments: {reason}")
    out.print(table)


def print_assumptions(out: Console, plan: Plan | FleetPlan) -> None:
    """Print what the plan took for granted, and how to say otherwise."""
    if not plan.assumptions:
        return
    out.print("\nassumed, since nothing else was said:")
    table = facts_table()
    table.add_column()
    for assumption in plan.assumptions:
        table.add_row(assumption.what, assumption.value, f"[dim]{assumption.flag}[/dim]")
    out.print(table)


def _cells(group: ReplicaGroup) -> tuple[str, ...]:
    return (
        f"{group.count}",
        f"{group.model} {group.quantization} on {group.gpu}, TP{group.tp}",
        f"{group.count * group.tp}",
        f"{group.count * group.cost_per_hour:.2f}",
        f"{group.load_qps:.3g}",
        f"{1 - group.headroom:.0%} of {group.saturation_qps:.3g}",
        f"{group.quality.value:.1%}",
        *(format_duration(latency.value) for latency in group.predicted),
    )


def _latency(latency: LatencyPrediction) -> str:
    text = f"{format_duration(latency.value)}"
    if math.isfinite(latency.upper):
        text += f", between {format_duration(latency.lower)} and {format_duration(latency.upper)}"
    if latency.slo is not None:
        text += f"; the SLO is {format_duration(latency.slo)}"
    return text


def _grid(*titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title == "deployment" else "right")
    return table
