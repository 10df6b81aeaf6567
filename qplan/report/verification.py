"""What a plan reached in simulation, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qplan.report.output import facts_table

if TYPE_CHECKING:
    from rich.console import Console


def print_verification(out: Console, verification: Mapping[str, Any]) -> None:
    """Print a verification, given as the data that ``Tightened.to_json`` returns."""
    out.print("\n[bold]verified in simulation[/bold]")
    table = facts_table()
    for name, text in verification_rows(verification):
        table.add_row(name, text)
    out.print(table)


def verification_rows(verification: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a name and a text for each objective, and for how the plan came to be."""
    rows = [(f"{one['class']} {one['slo']}", _reached(one, verification)) for one in _worst(verification)]
    if not rows:
        rows.append(("SLOs", "none: nothing to reach"))
    if verification["rounds"] > 1:
        rows.append(("planned again", _planned_again(verification)))
    if not verification["holds"]:
        rows.append(("[yellow]warning[/yellow]", "the plan is not shown to reach its SLOs"))
    periods = {one["period"] for one in verification["attainments"]}
    horizon = f" of {len(periods)} periods" if len(periods) > 1 else ""
    rows.append(
        ("simulated", f"{verification['requests']:,} requests{horizon}, {_arrivals(verification)}, random routing")
    )
    rows.append(("not verified", "the step times: the simulation runs on those of the plan"))
    return rows


def _arrivals(verification: Mapping[str, Any]) -> str:
    recorded = verification["recorded"]
    if not recorded:
        return "Poisson arrivals"
    others = {one["class"] for one in verification["attainments"]} - set(recorded)
    return f"{' and '.join(recorded)} as in the trace" + (", else Poisson arrivals" if others else "")


def _worst(verification: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return, of each objective, the period in which it is nearest to its target or farthest below."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for one in verification["attainments"]:
        key = (one["class"], one["slo"])
        if key not in found or one["lower"] < found[key]["lower"]:
            found[key] = one
    return list(found.values())


def _reached(one: Mapping[str, Any], verification: Mapping[str, Any]) -> str:
    several = len({other["period"] for other in verification["attainments"]}) > 1
    when = f" in its worst period ({one['period']})" if several else ""
    verdict = "reached" if one["lower"] >= one["target"] else "in doubt" if one["share"] >= one["target"] else "missed"
    return (
        f"{verdict}: {one['share']:.2%} of requests{when}, between {one['lower']:.2%} and {one['upper']:.2%}; "
        f"asked for {one['target'] * 100:.6g}%"
    )


def _planned_again(verification: Mapping[str, Any]) -> str:
    first = min(verification["first"]["attainments"], key=lambda one: one["lower"] - one["target"])
    return (
        f"{verification['rounds'] - 1} times, with capacities down to {verification['least_factor']:.0%} of those "
        f"predicted: the first plan had {first['share']:.2%} of {first['class']} within {first['slo']}"
    )
