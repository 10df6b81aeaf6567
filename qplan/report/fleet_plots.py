"""Figures of fleet plans: demand and fleet by hour, what a growing demand costs, and Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplan.core.demand import MEASURES
from qplan.report.measured_axes import Drawn, finished, grid, legend, style
from qplan.report.sweeps import figures

if TYPE_CHECKING:
    from qplan.core.fleetplan import FleetPlan

_LABELS = {**{name: f"{name} ({unit})" for name, unit in MEASURES.items()}, "quality": "quality (share of 16 bits)"}


def draw_fleet(plan: FleetPlan) -> Drawn:
    """Draw requests/s by class above the GPUs of each option, both stacked, by hour."""
    starts = [period.start_h for period in plan.periods]
    widths = [period.hours for period in plan.periods]
    with style():
        figure, (demand, fleet) = grid(2, title=plan.name, panel=(5.2, 3.4))
        below = [0.0] * len(starts)
        for n, name in enumerate(plan.periods[0].rate_qps):
            rates = [period.rate_qps[name] for period in plan.periods]
            demand.bar(starts, rates, widths, below, align="edge", label=name, color=f"C{n}", alpha=0.55)
            below = [low + rate for low, rate in zip(below, rates, strict=True)]
        demand.set(xlabel="hour", ylabel="requests/s", xlim=(0, plan.hours))
        below = [0.0] * len(starts)
        for n, option in enumerate(plan.options):
            counts = [
                option.tp * sum(group.count for group in period.groups if group.option == option.name)
                for period in plan.periods
            ]
            colour, hatch = f"C{(n + len(plan.periods[0].rate_qps)) % 10}", "//" if n >= 8 else ""
            fleet.bar(
                starts,
                counts,
                widths,
                below,
                align="edge",
                label=option.name,
                edgecolor="white",
                color=colour,
                hatch=hatch,
            )
            below = [low + count for low, count in zip(below, counts, strict=True)]
        fleet.set(xlabel="hour", ylabel="GPUs that serve", xlim=(0, plan.hours))
        legend(figure, [demand, fleet])
        caption = "Requests/s of each class, and the GPUs of each deployment, stacked, by the hour."
        return finished("fleet", plan.name, caption, figure)


def draw_sweep(points: Sequence[tuple[float, FleetPlan]]) -> Drawn:
    """Draw cost and GPU-hours over the requests/s of the busiest period, with the proven bound where it is on cost."""
    found = [(peak, figures(plan)) for peak, plan in points if plan.totals is not None]
    name = points[0][1].name
    with style():
        figure, axes = grid(2, title=name, panel=(4.6, 3.2))
        for at, measure in zip(axes, ("cost", "gpus"), strict=True):
            at.plot([peak for peak, _ in found], [row[measure] or 0.0 for _, row in found], marker="o", color="#0072B2")
            at.set(xlabel="requests/s in the busiest period", ylabel=_LABELS[measure], xlim=(0, None), ylim=(0, None))
        return finished("sweep", name, "The best fleet at each rate; rates without a fleet are left out.", figure)


def draw_front(measures: Sequence[str], plans: Sequence[FleetPlan]) -> Drawn:
    """Draw each measure but the first over the first."""
    found = [figures(plan) for plan in plans]
    first, *others = measures
    with style():
        figure, axes = grid(len(others), title=plans[0].name, panel=(4.6, 3.2))
        for at, measure in zip(axes, others, strict=True):
            pairs = sorted((row[first] or 0.0, row[measure] or 0.0) for row in found)
            at.plot([x for x, _ in pairs], [y for _, y in pairs], marker="o", linestyle=":", color="#D55E00")
            at.set(xlabel=_LABELS[first], ylabel=_LABELS[measure])
        return finished("front", plans[0].name, "Fleets of which none is better in every measure.", figure)
