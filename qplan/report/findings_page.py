"""Findings as figures and as a page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.errors import InputError
from qplan.report.findings import NAMES, STEP_HEADER, spread_lines, step_tables, subject_table, verdict_of
from qplan.report.measured_axes import Drawn, finished, grid, legend, scale, shades, slug, style
from qplan.report.measured_page import figure_block, list_block, page, table_block
from qplan.report.measured_summary import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplan.measure.findings.claims import Curve, Finding, Subject
    from qplan.measure.findings.contrasts import Effect
    from qplan.measure.findings.points import MeasuredLoads

NOT = (
    "An effect is a ratio of the same engine with and without a quantization, never of two engines.",
    "A verdict goes by the spread of repeats on the measuring machine, as if runs were independent: drift of the "
    "machine between one format and the next is not in it.",
    "Intervals are of 95 % for all comparisons of a claim together; those in figures are of 95 % each.",
    "Weights, engine versions and lengths are those of the pack; others can reverse an effect.",
)
_OPEN = 1e-9


def write_findings(name: str, loads: MeasuredLoads, found: Sequence[Finding], out: Path) -> tuple[Path, ...]:
    """Write the page, ``FILE.html``, or every claim's figure, ``FILE-claim.png``.

    Raises
    ------
    InputError
        matplotlib is missing, there is nothing to draw, or a file cannot be written.
    """
    drawn = {one.key: _draw(one) for one in found if one.subjects}
    try:
        if out.suffix.casefold() == ".html":
            out.write_text(_page(name, loads, found, drawn), encoding="utf-8")
            return (out,)
        if not drawn:
            raise InputError(f"--plot: {name} tells nothing of any claim: no figure; FILE.html says why")
        files = [out.with_name(f"{out.stem}-{key}.png") for key in drawn]
        for file, figure in zip(files, drawn.values(), strict=True):
            file.write_bytes(figure.png)
        return tuple(files)
    except OSError as error:
        raise InputError(f"--plot: cannot write {out}: {error.strerror}") from None


def _draw(one: Finding) -> Drawn:
    """Draw quantized over 16 bits along the claim's axis: a panel for each system, mix and metric."""
    lines = [(subject, name, curve) for subject in one.subjects for name, curve in subject.curves.items()]
    panels = list(dict.fromkeys((subject.system, name, subject.metric) for subject, name, _ in lines))
    kinds = list(dict.fromkeys(subject.quantization for subject in one.subjects))
    with style():
        palette = dict(zip(kinds, shades(len(kinds)), strict=True))
        figure, axes = grid(len(panels), title=f"{one.claim}\n{one.verdict}", panel=(4.2, 3.1))
        for at, (system, mix, metric) in zip(axes, panels, strict=True):
            own = [(s, c) for s, name, c in lines if (s.system, name, s.metric) == (system, mix, metric)]
            _panel(at, own, palette)
            at.set_title(f"{system}\n{mix}", fontsize=7.5, loc="left")
            at.set(xlabel=one.axis, ylabel=f"{NAMES[metric]}: quantized over 16 bits")
        legend(figure, axes)
        caption = f"{verdict_of(one)}. On the dashed line a quantization changes nothing; bars: 95 %, by repeats."
        return finished(slug("finding", one.key), one.claim, caption, figure)


def _panel(at: Axes, lines: Sequence[tuple[Subject, Curve]], palette: dict[str, object]) -> None:
    spreads = []
    for n, (subject, curve) in enumerate(lines):
        # Lines of one load would hide each other's bars.
        xs = [x * 1.012 ** (n - len(lines) / 2) for x in curve.axis]
        bounded = [_spread(effect) for effect in curve.effects]
        spreads += bounded
        errors = [[s.value - s.low for s in bounded], [s.high - s.value for s in bounded]]
        at.errorbar(
            xs,
            [s.value for s in bounded],
            errors,
            label=subject.quantization,
            color=palette[subject.quantization],
            marker="o",
            markersize=3.5,
            elinewidth=0.7,
            capsize=1.5,
            linewidth=1.1,
        )
    one = Spread(1.0, 1.0, 1.0, 1)
    scale(at, "y", [one, *spreads], log=True)
    axis = [x for _, curve in lines for x in curve.axis]
    scale(at, "x", [Spread(x, x, x, 1) for x in axis], log=True)
    at.axhline(1.0, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)))


def _spread(effect: Effect) -> Spread:
    """Return an effect as a spread; without a bar where its own is not known."""
    if math.isinf(effect.high) or effect.low <= _OPEN:
        return Spread(effect.value, effect.value, effect.value, 1)
    return Spread(effect.value, effect.low, effect.high, 1)


def _page(name: str, loads: MeasuredLoads, found: Sequence[Finding], drawn: dict[str, Drawn]) -> str:
    body = "".join(_section(one, drawn.get(one.key)) for one in found)
    steps = "".join(
        f"<h3>{escape(system)}</h3>\n{table_block(STEP_HEADER, rows)}" for system, rows in step_tables(loads)
    )
    energy = list_block(loads.energy_notes) if loads.energy_notes else ""
    return page(
        f"Findings: {name}",
        f"<h2>What these verdicts are not</h2>\n{list_block(NOT)}{body}"
        f"<h2>Step times and power by quantization</h2>\n{steps or '<p>No load was measured.</p>'}{energy}",
    )


def _section(one: Finding, figure: Drawn | None) -> str:
    text = (
        f"<h2>{escape(one.claim)}</h2>\n<p>Claimed by {escape(one.source)}.<br><b>{escape(verdict_of(one))}.</b></p>\n"
    )
    if figure is None:
        return text
    lines = list_block((*spread_lines(one), *one.notes))
    return text + figure_block(figure) + table_block(*subject_table(one)) + lines
