"""Measured observations as one HTML page: no scripts, no network, figures and tables inside."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from qplan.report.measured_summary import Load, Measured, Spread

if TYPE_CHECKING:
    from qplan.report.measured_axes import Drawn

CAVEATS = (
    "Measured on the hosts, engine versions and days named below; another version can reverse the ranking of methods.",
    "Saturation is the highest open-loop rate that met the SLOs named; other SLOs or arrivals give other rates.",
    "Error bars and brackets span the repeats, with the intervals that the rows state; they hold nothing of other "
    "machines, prompts or days.",
    "Failed, timed-out and truncated requests count as SLO misses. Points that could not be measured are listed with "
    "their reasons, and are in no figure.",
    "Perplexity and KL divergence are those of the texts named; they stand for no other task until it is measured.",
    "A KL divergence of 0, the unquantized model's against itself, has no place on a logarithmic axis.",
)

_MOST_FACTS = 20  # of one kind; each start of an engine has a command of its own
_CSS_PIXELS_PER_INCH = 96

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 1180px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2.2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin-bottom: .3em; }
figure { margin: 1.2em 0 2em; } figure img { max-width: 100%; height: auto; } figcaption { color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; text-align: left; border-bottom: 1px solid #eee; vertical-align: top; }
th { border-bottom: 1px solid #999; } td.n, th.n { text-align: right; white-space: nowrap; }
td pre { margin: 0; white-space: pre-wrap; max-width: 60em; } .range { color: #777; font-size: 12px; }
"""


def render_page(measured: Measured, drawn: Iterable[Drawn], title: str) -> str:
    """Return the page; every name from the observations is escaped."""
    figures = "".join(figure_block(figure) for figure in drawn)
    sections = (
        ("What these numbers are not", list_block(CAVEATS)),
        ("Figures", figures or "<p>No figure: nothing was measured without failure.</p>"),
        ("Quality", _quality(measured)),
        ("Saturation", _saturation(measured)),
        ("Under load", _loads(measured)),
        ("Energy", _energy(measured)),
        ("Failures", _failures(measured)),
        ("Where the numbers come from", _provenance(measured)),
    )
    return page(title, f"<p>{_counts(measured)}</p>\n{section_blocks(sections)}")


def page(title: str, body: str) -> str:
    """Return a whole page of a title, escaped, and what is below it."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{body}</body>\n</html>\n"
    )


def section_blocks(sections: Iterable[tuple[str, str]]) -> str:
    """Return sections with their headings, escaped; those without content are left out."""
    return "".join(f"<h2>{escape(name)}</h2>\n{content}\n" for name, content in sections if content)


def bracketed(spread: Spread | None) -> str:
    """Print a value with its range, ``4.1 [3.9, 4.3]``; a dash where there is none."""
    if spread is None:
        return "–"
    if spread.low == spread.high:
        return f"{spread.value:.3g}"
    return f"{spread.value:.3g} [{spread.low:.3g}, {spread.high:.3g}]"


def _counts(measured: Measured) -> str:
    days = measured.facts["measured_on"]
    when = f", measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    failed = sum(failure.count for failure in measured.failures)
    what = "; ".join(str(system) for system in measured.systems)
    counts = f"{measured.rows} observations of {len(measured.variants)} configurations{when}; {failed} failed."
    return f"{escape(what)}.<br>{escape(counts)}"


def figure_block(drawn: Drawn) -> str:
    """Return a figure with its heading and caption, the picture within the page."""
    data = base64.b64encode(drawn.png).decode()
    width = round(drawn.figure.get_figwidth() * _CSS_PIXELS_PER_INCH)
    return (
        f"<h3>{escape(drawn.title)}</h3>\n<figure>"
        f'<img alt="{escape(drawn.title)}" width="{width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(drawn.caption)}</figcaption></figure>\n"
    )


def _quality(measured: Measured) -> str:
    rows = [
        (
            str(score.variant.system),
            score.variant.quantization,
            score.task,
            score.metric,
            score.score,
            score.baseline,
            score.change,
            score.items,
        )
        for score in measured.scores
    ]
    header = ("system", "quantization", "task", "metric", "score", "baseline", "change", "items")
    return table_block(header, rows)


def _saturation(measured: Measured) -> str:
    rows = [
        (
            str(s.variant.system),
            s.variant.quantization,
            s.variant.bits,
            s.workload,
            s.arrivals,
            s.slo,
            s.qps,
            s.qps.count,
        )
        for s in measured.saturations
    ]
    header = ("system", "quantization", "bits/weight", "workload", "arrivals", "SLO", "saturation (req/s)", "repeats")
    return table_block(header, rows)


def _loads(measured: Measured) -> str:
    def row(load: Load) -> tuple[object, ...]:
        value = load.values.get
        return (
            str(load.variant.system),
            f"{load.variant.quantization} {load.variant.settings}".strip(),
            load.workload,
            load.offered_qps,
            value("achieved_qps"),
            *(value(name) for name in ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "tpot_p50_s", "tpot_p90_s")),
            value("goodput_qps"),
            value("j_per_token"),
            f"{load.failed_requests} of {load.requests}" if load.requests else None,
        )

    header = (
        *("system", "quantization", "workload", "offered (req/s)", "achieved (req/s)"),
        *("TTFT p50 (s)", "TTFT p90 (s)", "TTFT p99 (s)", "TPOT p50 (s)", "TPOT p90 (s)"),
        *("goodput (req/s)", "J/token", "failed"),
    )
    closed = f"<p>{measured.closed_loop} closed-loop rows are not shown.</p>" if measured.closed_loop else ""
    return table_block(header, [row(load) for load in measured.loads]) + closed


def _energy(measured: Measured) -> str:
    if any("j_per_token" in load.values for load in measured.loads):
        return list_block(measured.energy_notes) if measured.energy_notes else ""
    if not measured.loads:
        return ""
    return "<p>No energy was measured.</p>" + list_block(measured.energy_notes or ("The rows do not say why.",))


def _failures(measured: Measured) -> str:
    header = ("system", "quantization", "phase", "point", "status", "reason", "times")
    rows = [
        (str(f.variant.system), f.variant.quantization, f.phase, f.point, f.status, _Block(f.reason), f.count)
        for f in measured.failures
    ]
    return table_block(header, rows) if rows else "<p>None.</p>"


def _provenance(measured: Measured) -> str:
    systems = [
        (s.model, f"{s.engine} {s.engine_version}", s.gpu, s.tp, s.provenance, ", ".join(_settings(measured, s)))
        for s in measured.systems
    ]
    facts = []
    for name, values in measured.facts.items():
        facts += [(name, _Block(value)) for value in values[:_MOST_FACTS]]
        if len(values) > _MOST_FACTS:
            facts.append((name, _Block(f"and {len(values) - _MOST_FACTS} more")))
    bits = [
        (v.quantization, v.bits, "measured" if v.bits_measured else "catalogue")
        for v in measured.variants
        if v.bits is not None
    ]
    return (
        table_block(("model", "engine", "GPU", "TP", "provenance", "settings"), systems)
        + "<h3>Bits per weight</h3>"
        + table_block(("quantization", "bits/weight", "basis"), list(dict.fromkeys(bits)))
        + "<h3>What the rows say of themselves</h3>"
        + table_block(("field", "value"), facts)
    )


def _settings(measured: Measured, system: object) -> list[str]:
    return sorted({v.settings for v in measured.variants if v.system == system and v.settings})


class _Block(str):
    """Text whose line breaks are kept."""

    __slots__ = ()


def table_block(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Make a table; columns without any value are left out, and the system where there is one only."""
    if not rows:
        return ""
    kept = [i for i in range(len(header)) if any(row[i] not in (None, "") for row in rows)]
    if header[0] == "system" and len({row[0] for row in rows}) == 1:
        kept = kept[1:]
    numeric = [all(isinstance(row[i], int | float | Spread | None) for row in rows) for i in range(len(header))]

    def cell(tag: str, i: int, content: str) -> str:
        return f'<{tag} class="n">{content}</{tag}>' if numeric[i] else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", i, escape(header[i])) for i in kept)
    lines = ("".join(cell("td", i, _content(row[i])) for i in kept) for row in rows)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _content(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Spread):
        number, _, between = bracketed(value).partition(" ")
        return f'{number} <span class="range">{between}</span>' if between else number
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, _Block):
        return f"<pre>{escape(value)}</pre>"
    return escape(str(value))


def list_block(lines: Sequence[str]) -> str:
    """Return a list of lines, escaped."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>\n"
