"""What measured loads say of the studies' claims, on the terminal, as JSON and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qplan.measure.findings.claims import together
from qplan.measure.findings.points import ABOVE_IDLE, ENERGY, POWER, TPOT, TTFT, LoadPoint, MeasuredLoads, Series
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.measure.findings.claims import Finding, Part
    from qplan.measure.findings.contrasts import Effect

JSON_SCHEMA_VERSION = 1
CANNOT_TELL = "cannot be told from this pack"
NAMES = {TTFT: "TTFT p50", TPOT: "TPOT p50", ENERGY: "J/token"}
#: Columns of the table of step times and power: name in JSON, heading, and what it is multiplied by to be shown.
STEP_COLUMNS = (
    ("batch", "batch", 1.0),
    (TPOT, "TPOT p50 (ms)", 1e3),
    (TTFT, "TTFT p50 (ms)", 1e3),
    ("idle_power_w", "idle (W)", 1.0),
    (POWER, "power (W)", 1.0),
    (ENERGY, "J/token", 1.0),
    (ABOVE_IDLE, "above idle", 1.0),
    ("sm_clock_mean_mhz", "SM clock (MHz)", 1.0),
    ("temperature_max_c", "at most (°C)", 1.0),
)
STEP_HEADER = ("mix", "quantization", "req/s", *(heading for _, heading, _ in STEP_COLUMNS))


def print_findings(name: str, loads: MeasuredLoads, found: Sequence[Finding], *, as_json: bool) -> None:
    """Print every claim with its verdict and effects, then step times and power by quantization."""
    if as_json:
        print_json({"schema_version": JSON_SCHEMA_VERSION, "profiles": name, **_document(loads, found)})
        return
    for one in found:
        _print_finding(one)
    for system, rows in step_tables(loads):
        console().print(f"Step times and power by quantization: {system}", style="bold", markup=False)
        print_table(*_filled(STEP_HEADER, rows))
    for note in loads.energy_notes:
        console().print(f"energy: {note}", markup=False)


def verdict_of(one: Finding) -> str:
    """Return the verdict in a line: of the average, then of how many subjects."""
    if one.cannot_tell is not None:
        return f"{CANNOT_TELL}, because {one.cannot_tell}"
    counts = ", ".join(f"{verdict.value} in {count}" for verdict, count in one.counts().items() if count)
    return f"{one.verdict} on average; alone: {counts} of {len(one.subjects)}"


def subject_table(one: Finding) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of a finding: a subject a row, after a row for the average of each metric."""
    rows = [
        ("average", "", NAMES[metric], *(_compared(part) for part in parts), together(parts).value)
        for metric, parts in one.average.items()
    ]
    several = len({subject.system for subject in one.subjects}) > 1
    for subject in one.subjects:
        who = f"{subject.quantization}, {subject.system}" if several else subject.quantization
        effects = (_compared(part) for part in subject.parts)
        rows.append((who, subject.mix, NAMES[subject.metric], *effects, subject.verdict.value))
    whats = [part.what for part in next(iter(one.average.values()))]
    return ("quantization over 16 bits", "mix", "metric", *whats, "verdict"), rows


def spread_lines(one: Finding) -> list[str]:
    """Say how far repeats lie apart in each metric."""
    return [
        f"one run of {NAMES[metric]} lies within {_percent(spread.light.log_sd)} of another at low rates, "
        f"{_percent(spread.heavy.log_sd)} at high ones (one standard deviation; "
        f"{spread.light.points} and {spread.heavy.points} loads repeated)"
        for metric, spread in one.spreads.items()
        if spread.known
    ]


def step_tables(loads: MeasuredLoads) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Yield a table a system: its lowest and its highest load in each mix and quantization."""
    for system in dict.fromkeys(one.system for one in loads.series):
        yield str(system), [_step_row(one, point) for one, point in _ends(loads) if one.system == system]


def _print_finding(one: Finding) -> None:
    console().print(one.claim, style="bold", markup=False)
    console().print(f"claimed by {one.source}", style="dim", markup=False)
    console().print(verdict_of(one), markup=False)
    if one.subjects:
        print_table(*_filled(*subject_table(one)))
        for line in (*spread_lines(one), *one.notes):
            console().print(f"· {line}", style="dim", markup=False)
    console().print()


def _compared(part: Part) -> str:
    where = f" ({part.where})" if part.where else ""
    return f"{effect_text(part.effect)}{where}"


def effect_text(effect: Effect) -> str:
    """Print a ratio with its interval; without one where its spread is not known."""
    if math.isinf(effect.high):
        return f"x{effect.value:.2f}"
    return f"x{effect.value:.2f} [{effect.low:.2f}, {effect.high:.2f}]"


def _percent(log_sd: float) -> str:
    return f"{math.expm1(log_sd):.1%}"


def _ends(loads: MeasuredLoads) -> Iterator[tuple[Series, LoadPoint]]:
    """Yield the lowest and the highest load of every series."""
    for one in loads.series:
        yield from ((one, point) for point in dict.fromkeys((one.points[0], one.points[-1])))


def _step_row(one: Series, point: LoadPoint) -> tuple[str, ...]:
    values = _values(point)
    shown = ("" if (value := values[name]) is None else f"{value * by:.3g}" for name, _, by in STEP_COLUMNS)
    behind = "" if point.kept_up else ", fell behind"
    return one.mix.name, str(one.quantization), f"{point.offered_qps:.3g}{behind}", *shown


def _values(point: LoadPoint) -> dict[str, float | None]:
    found = {name: point.batch if name == "batch" else point.mean(name) for name, _, _ in STEP_COLUMNS}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _filled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Leave out the columns that no row fills."""
    kept = [n for n in range(len(header)) if any(row[n] for row in rows)]
    return [header[n] for n in kept], [[row[n] for n in kept] for row in rows]


def _document(loads: MeasuredLoads, found: Sequence[Finding]) -> dict[str, Any]:
    steps = [
        {
            "system": str(one.system),
            "mix": one.mix.name,
            "quantization": str(one.quantization),
            "offered_qps": point.offered_qps,
            "kept_up": point.kept_up,
            **_values(point),
        }
        for one, point in _ends(loads)
    ]
    return {"findings": list(map(_finding, found)), "steps": steps, "energy_notes": list(loads.energy_notes)}


def _finding(one: Finding) -> dict[str, Any]:
    subjects = [
        {**asdict(subject), "verdict": subject.verdict.value, "parts": list(map(_part, subject.parts))}
        for subject in one.subjects
    ]
    return {
        **asdict(one),
        "verdict": None if one.verdict is None else one.verdict.value,
        "average": {metric: list(map(_part, parts)) for metric, parts in one.average.items()},
        "subjects": subjects,
    }


def _part(part: Part) -> dict[str, Any]:
    return {**asdict(part), "verdict": part.verdict.value}
