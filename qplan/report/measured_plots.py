"""Figures of measured observations: bits against quality and speed, latency, energy and goodput against load.

Colours tell schemes apart and go from dark to light as bits fall, in a palette that colour-blind readers see too;
line style and marker tell KV-cache formats apart. Error bars span the repeats, and their intervals where they have any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.report.measured_axes import Drawn, bars, bits_axis, finished, grid, legend, scale, shades, slug, style
from qplan.report.measured_summary import Load, Measured, Spread, System, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette for series that have no order.
_SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
_WIDE = 5  # rates further apart than this factor share a logarithmic axis, else one from zero
_METRIC_NAMES = {
    "perplexity": "perplexity",
    "kl_divergence": "KL divergence from 16 bits (nats)",
    "top1_agreement": "top-1 agreement with 16 bits",
}
_LOG_METRICS = ("perplexity", "kl_divergence")


def draw_trends(measured: Measured) -> list[Drawn]:
    """Draw bits per weight against quality and against saturation, a figure for each model.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    drawn = []
    with style():
        for model in dict.fromkeys(system.model for system in measured.systems):
            first = _quality_panels(measured, model, main=True) + _saturation_panels(measured, model)
            if first:
                drawn.append(_trend(measured, model, first, "trend", "quality and saturation"))
            others = _quality_panels(measured, model, main=False)
            if others:
                drawn.append(_trend(measured, model, others, "tasks", "scores of tasks"))
    return drawn


def draw_loads(measured: Measured) -> list[Drawn]:
    """Draw latency, goodput and energy against the offered load, a figure for each system and workload.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    drawn: list[Drawn] = []
    with style():
        for system in measured.systems:
            here = [load for load in measured.loads if load.variant.system == system]
            for workload, slo, arrivals in dict.fromkeys((x.workload, x.slo, x.arrivals) for x in here):
                loads = [x for x in here if (x.workload, x.slo, x.arrivals) == (workload, slo, arrivals)]
                what = ", ".join(part for part in (workload, arrivals, slo and f"SLO {slo}") if part)
                drawn += _load_figures(system, what, slo, loads)
    return drawn


@dataclass(frozen=True, slots=True)
class _Panel:
    """One set of axes of bits per weight: its values by variant."""

    title: str
    label: str
    log: bool
    points: Sequence[tuple[Variant, Spread]]
    baseline: float | None = None


def _quality_panels(measured: Measured, model: str, *, main: bool) -> list[_Panel]:
    """Make a panel for each task and metric: perplexity and KL divergence, or all others."""
    scores = [s for s in measured.scores if s.variant.system.model == model and (s.metric in _LOG_METRICS) == main]
    panels = []
    for task, metric in sorted({(s.task, s.metric) for s in scores}, key=lambda pair: (pair[1] != "perplexity", pair)):
        mine = [s for s in scores if (s.task, s.metric) == (task, metric)]
        placed = [(s.variant, s.score) for s in mine if s.variant.bits]
        # The baseline's divergence from itself has no place on a logarithmic axis.
        points = [(v, score) for v, score in placed if metric != "kl_divergence" or score.value > 0]
        baseline = next((s.baseline for s in mine if s.baseline is not None), None)
        if points:
            name = _METRIC_NAMES.get(metric, metric.replace("_", " "))
            shown = baseline if metric != "kl_divergence" else None
            panels.append(_Panel(task, name, metric in _LOG_METRICS, points, shown))
    return panels


def _saturation_panels(measured: Measured, model: str) -> list[_Panel]:
    """Make a panel for each workload, arrival process and set of SLOs."""
    found = [s for s in measured.saturations if s.variant.system.model == model and s.variant.bits]
    several = len({s.arrivals for s in found}) > 1
    panels = []
    for workload, slo, arrivals in dict.fromkeys((s.workload, s.slo, s.arrivals) for s in found):
        points = [(s.variant, s.qps) for s in found if (s.workload, s.slo, s.arrivals) == (workload, slo, arrivals)]
        rates = [spread.value for _, spread in points]
        title = ", ".join(part for part in (workload, arrivals if several else "", slo) if part)
        wide = max(rates) > _WIDE * min(rates)
        panels.append(_Panel(title, "saturation (req/s)", wide, points))
    return panels


def _trend(measured: Measured, model: str, panels: Sequence[_Panel], name: str, what: str) -> Drawn:
    figure, axes = grid(len(panels), title=model, panel=(4.1, 3.5))
    systems = [system for system in measured.systems if system.model == model]
    variants = [variant for panel in panels for variant, _ in panel.points]
    series = list(dict.fromkeys((v.system, v.kv, v.settings) for v in sorted(variants, key=lambda v: v.kv != "KV16")))
    colours, markers = cycle(_SERIES_COLOURS), cycle(_MARKERS)
    looks = {key: (next(colours), next(markers)) for key in series}
    for at, panel in zip(axes, panels, strict=True):
        for key in series:
            mine = ((v.bits, spread) for v, spread in panel.points if (v.system, v.kv, v.settings) == key)
            points = sorted(((bits, spread) for bits, spread in mine if bits), key=lambda point: point[0])
            colour, marker = looks[key]
            label = ", ".join(part for part in (_short(key[0], systems), key[1], key[2]) if part)
            bars(at, points, label, color=colour, marker=marker, markerfacecolor="white", alpha=0.9)
        if panel.baseline is not None:
            at.axhline(panel.baseline, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), label="baseline")
        scale(at, "y", [spread for _, spread in panel.points], log=panel.log)
        bits_axis(at, [variant for variant, _ in panel.points])
        at.set_ylabel(panel.label)
        at.set_title(panel.title, pad=52, loc="left")
    legend(figure, axes)
    nominal = [v.scheme for v in variants if not v.bits_measured]
    caption = f"{what.capitalize()} against bits per weight."
    if nominal:
        caption += f" Bits of {', '.join(dict.fromkeys(nominal))} are the catalogue's, not measured."
    return finished(slug(name, model), f"{model}: bits against {what}", f"{caption} {_BARS}", figure)


_BARS = "Error bars span the repeats and their intervals."


def _load_figures(system: System, what: str, slo: str, loads: Sequence[Load]) -> Iterator[Drawn]:
    stem = (system.model, system.engine, loads[0].workload)
    limits = _limits(slo)
    panels = [
        (metric, q, unit, per_second)
        for metric, unit, per_second in (("ttft", "s", 1.0), ("tpot", "ms", 1e3))
        for q in ("p50", "p90", "p99")
        if any(f"{metric}_{q}_s" in load.values for load in loads)
    ]
    if panels:
        figure, axes = grid(len(panels), title=f"{system}\n{what}", panel=(3.6, 2.7))
        for at, (metric, q, unit, per_second) in zip(axes, panels, strict=True):
            limit = limits.get((metric, q))
            label = f"{metric.upper()} {q} ({unit})"
            _load_panel(at, loads, f"{metric}_{q}_s", label, log=True, factor=per_second)
            if limit is not None:
                at.axhline(limit * per_second, color="#b00020", linewidth=1, linestyle=(0, (4, 3)), label="SLO")
                at.set_ylim(top=max(at.get_ylim()[1], limit * per_second * 1.05))
        legend(figure, axes)
        caption = f"Time to first token and time per output token against the offered load. {_BARS}"
        yield finished(slug("latency", *stem), f"{system}, {what}: latency", caption, figure)
    if any("goodput_qps" in load.values for load in loads):
        figure, axes = grid(1, title=f"{system}\n{what}", panel=(5.2, 3.6))
        _load_panel(axes[0], loads, "goodput_qps", "goodput (req/s)", log=False)
        most = max(load.offered_qps for load in loads)
        axes[0].plot([0, most], [0, most], color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), label="all requests")
        legend(figure, axes)
        caption = f"Requests per second that met every SLO; on the dashed line all of them do. {_BARS}"
        yield finished(slug("goodput", *stem), f"{system}, {what}: goodput", caption, figure)
    energies = [
        (name, label)
        for name, label in (
            ("j_per_token", "energy (J/token)"),
            ("j_per_token_above_idle", "energy above idle (J/token)"),
        )
        if any(name in load.values for load in loads)
    ]
    if energies:
        figure, axes = grid(len(energies), title=f"{system}\n{what}", panel=(4.3, 3.2))
        for at, (name, label) in zip(axes, energies, strict=True):
            _load_panel(at, loads, name, label, log=True)
        legend(figure, axes)
        caption = f"Energy of a generated token, by the tokens of the same window. {_BARS}"
        yield finished(slug("energy", *stem), f"{system}, {what}: energy", caption, figure)


def _load_panel(at: Axes, loads: Sequence[Load], name: str, label: str, *, log: bool, factor: float = 1.0) -> None:
    """Draw one value against the offered load, a line for each variant."""
    variants = list(dict.fromkeys(load.variant for load in loads))
    schemes = list(dict.fromkeys(variant.scheme for variant in variants))
    caches = sorted({(variant.kv, variant.settings) for variant in variants}, key=lambda kv: (kv[0] != "KV16", kv))
    palette = shades(len(schemes))
    drawn = []
    for variant in variants:
        mine = [load for load in loads if load.variant == variant and name in load.values]
        points = [(load.offered_qps, _times(load.values[name], factor)) for load in mine]
        shade = palette[schemes.index(variant.scheme)]
        cache = caches.index((variant.kv, variant.settings))
        face = shade if cache == 0 else "white"
        drawn += [spread for _, spread in points]
        bars(
            at,
            points,
            f"{variant.quantization} {variant.settings}".strip(),
            color=shade,
            linestyle=_DASHES[cache % len(_DASHES)],
            marker=_MARKERS[cache % len(_MARKERS)],
            markerfacecolor=face,
        )
    scale(at, "y", drawn, log=log)
    scale(at, "x", [Spread(load.offered_qps, load.offered_qps, load.offered_qps, 1) for load in loads], log=log)
    at.set(xlabel="offered load (req/s)", ylabel=label)


def _times(spread: Spread, factor: float) -> Spread:
    return Spread(spread.value * factor, spread.low * factor, spread.high * factor, spread.count)


def _limits(slo: str) -> dict[tuple[str, str], float]:
    """Return the thresholds of SLOs by metric and percentile; nothing for text that is none."""
    try:
        return {(s.metric, f"p{s.percentile:g}"): s.threshold_s for s in Slo.parse_all([slo]) if s.percentile}
    except InputError:
        return {}


def _short(system: System, among: Sequence[System]) -> str:
    """Name a system by what tells it from the others of its model."""
    fields: tuple[Callable[[System], str], ...] = (
        lambda s: f"{s.engine} {s.engine_version}",
        lambda s: s.gpu if s.tp == 1 else f"{s.tp} x {s.gpu}",
        lambda s: s.provenance,
    )
    return ", ".join(name(system) for name in fields if len({name(other) for other in among}) > 1)
