"""Many plans at once: over a growing demand, along a Pareto front, or beside a what-if."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qplan.core.demand import MEASURES
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.core.fleetplan import FleetPlan


def print_sweep(points: Sequence[tuple[float, FleetPlan]], *, as_json: bool) -> None:
    """Print plans by the requests/s of their busiest period."""
    rows = [{"peak_qps": peak, "status": plan.status, **figures(plan)} for peak, plan in points]
    if as_json:
        print_json({"schema_version": 1, "kind": "fleet-sweep", "points": rows})
        return
    header = ("requests/s", "$", "GPU-hours", "kWh", "gap", "fleet in the busiest period")
    print_table(
        header,
        [
            (f"{peak:.4g}", *_texts(plan, ("cost", "gpus", "energy")), _gap(plan), fleet_text(plan))
            for peak, plan in points
        ],
    )


def print_front(measures: Sequence[str], plans: Sequence[FleetPlan], *, as_json: bool) -> None:
    """Print the plans of a Pareto front."""
    if as_json:
        rows = [{**figures(plan), "fleet": dict(busiest(plan))} for plan in plans]
        print_json({"schema_version": 1, "kind": "fleet-front", "measures": list(measures), "plans": rows})
        return
    units = {**MEASURES, "quality": "share"}
    header = (*(f"{name} ({units[name]})" for name in measures), "gap", "fleet in the busiest period")
    print_table(header, [(*_texts(plan, measures), _gap(plan), fleet_text(plan)) for plan in plans])


def print_what_if(base: FleetPlan, others: Sequence[tuple[str, FleetPlan]], *, as_json: bool) -> None:
    """Print a plan and what each change makes of it."""
    if as_json:
        changes = [
            {"change": change, "plan": plan.to_json(), "difference": differences(base, plan)} for change, plan in others
        ]
        print_json({"schema_version": 1, "kind": "fleet-what-if", "base": base.to_json(), "changes": changes})
        return
    names = ("cost", "gpus", "energy", "carbon", "quality")
    rows = [("as it is", *_texts(base, names), fleet_text(base))]
    for change, plan in others:
        rows.append((change, *_texts(plan, names), fleet_text(plan)))
        rows.append(("  difference", *(_signed(name, differences(base, plan)[name]) for name in names), ""))
    print_table(("", "$", "GPU-hours", "kWh", "kg CO2e", "quality", "fleet in the busiest period"), rows)
    for change, plan in others:
        if plan.totals is None:
            nearest = f"; nearest change: {plan.nearest[0]}" if plan.nearest else ""
            console().print(f"{change}: no feasible plan ({plan.constraint}): {plan.reason}{nearest}", markup=False)


def figures(plan: FleetPlan) -> dict[str, float | None]:
    """Return the measures of a plan and its gap; ``None`` where there is no fleet, or they are unknown."""
    return {**plan.measures, "gap": plan.gap if plan.totals else None}


def differences(base: FleetPlan, plan: FleetPlan) -> dict[str, float | None]:
    """Return by how much each measure of `plan` exceeds that of `base`."""
    here, there = figures(base), figures(plan)
    return {name: None if (a := here[name]) is None or (b := there[name]) is None else b - a for name in here}


def busiest(plan: FleetPlan) -> Mapping[str, int]:
    """Return the replicas by option of the period with most requests."""
    if not plan.periods:
        return {}
    period = max(plan.periods, key=lambda one: sum(one.rate_qps.values()))
    return {group.option: group.count for group in period.groups}


def fleet_text(plan: FleetPlan) -> str:
    """Return the busiest period's fleet in words."""
    return " + ".join(f"{count} x {name}" for name, count in busiest(plan).items()) or f"none: {plan.constraint}"


def _texts(plan: FleetPlan, names: Sequence[str]) -> list[str]:
    found = figures(plan)
    return [_text(name, found[name]) for name in names]


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.2%}" if name == "quality" else f"{value:,.2f}"


def _signed(name: str, value: float | None) -> str:
    if value is None:
        return "—"
    return f"{round(value, 4) + 0.0:+.2%}" if name == "quality" else f"{value:+,.4g}"  # + 0.0: no -0.00%


def _gap(plan: FleetPlan) -> str:
    return "—" if plan.gap is None else f"{max(plan.gap, 0):.2%}"
