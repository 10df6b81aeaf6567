"""Forecasts of a deployment, and the errors of what they are made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError
from qplan.core.units import format_duration
from qplan.models.forecast import forecast
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.core.plan import Prediction
    from qplan.models.fitted import Fitted
    from qplan.models.fitting import HeldOut
    from qplan.models.forecast import Forecast, Quantity

_SHARES = np.linspace(0.05, 0.95, 19)  # of saturation: where a plot reads the forecast
_FORMATS = (".png", ".svg", ".pdf")
_PANELS = (("TTFT", ("ttft_p50", "ttft_p90")), ("TPOT", ("tpot_p50", "tpot_p90")), ("energy", ("j_per_token",)))


def print_forecast(found: Forecast, *, as_json: bool) -> None:
    """Print a forecast as JSON or as a table, with its warnings."""
    if as_json:
        print_json(found.to_json())
        return
    print_table(
        ("what", "value", "90 % of cases", "stands on"),
        [(_label(one), _value(one), _interval(one), _basis(one)) for one in found.quantities],
    )
    out = console()
    share = found.qps / found.saturation_qps
    out.print(f"\n{found.qps:g} req/s is {share:.0%} of the highest stable rate, {found.saturation_qps:.3g} req/s")
    for warning in found.warnings:
        out.print(f"[yellow]warning[/yellow]  {warning}", highlight=False)


def print_held_out(fitted: Fitted, held_out: Sequence[HeldOut], *, as_json: bool) -> None:
    """Print the errors of step times on what was left out of the fit, and what is known of latencies."""
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "profiles": fitted.source,
                "evidence": fitted.evidence,
                "step_times_left_out": [asdict(one) for one in held_out],
                "latency_measured_over_predicted": {name: asdict(one) for name, one in fitted.latency_error.items()},
            }
        )
        return
    out = console()
    out.print(f"step times of {fitted.source} ({fitted.evidence}), each predicted by a fit that had not seen it\n")
    print_table(
        ("left out", "points", "median error", "90 % below", "true / predicted, 90 %, by what it fell back on"),
        [
            (
                one.what,
                one.points,
                f"{one.median_error:.1%}",
                f"{one.p90_error:.1%}",
                "; ".join(f"{level} {ratio.lower:.2f} to {ratio.upper:.2f}" for level, ratio in one.by_level.items()),
            )
            for one in held_out
        ],
    )
    if not fitted.latency_error:
        out.print(f"\nnobody has measured how far latencies from {fitted.source} are from real serving")
    for name, ratio in fitted.latency_error.items():
        out.print(
            f"\n{name.upper()} measured in real serving was {ratio.lower:.2f} to {ratio.upper:.2f} of that predicted "
            "from the profiles, in 90 % of cases",
            end="",
        )
    out.print()


def draw_forecast(fitted: Fitted, found: Forecast, path: Path) -> None:
    """Draw latency and energy over load up to saturation, with their intervals.

    Raises
    ------
    InputError
        Matplotlib is not installed, or the file's kind is not one that it is to write.
    """
    if path.suffix.casefold() not in _FORMATS:
        raise InputError(f"--plot: {path} is of no kind that can be drawn; expected {', '.join(_FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--plot needs Matplotlib: pip install 'qplan[plots]'") from None
    loads = _SHARES * found.saturation_qps
    curves = [forecast(fitted, found.deployment, found.workload, float(qps)) for qps in loads]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(f"{found.deployment}, {found.workload.name}")
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name in names:
            drawn = [next(one for one in curve.quantities if one.name == name) for curve in curves]
            known = [(qps, one.prediction) for qps, one in zip(loads, drawn, strict=True) if one.prediction is not None]
            if not known:
                continue
            at = [qps for qps, _ in known]
            (line,) = axes.plot(
                at, [one.value for _, one in known], label=name.rpartition("_")[2] if "_p" in name else ""
            )
            if all(one.upper < np.inf for _, one in known):
                lower, upper = [one.lower for _, one in known], [one.upper for _, one in known]
                axes.fill_between(at, lower, upper, alpha=0.15, color=line.get_color())
        if found.qps < found.saturation_qps:
            axes.axvline(found.qps, color="grey", linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        axes.set_xlabel("requests/s")
        axes.set_title(f"{title}, {drawn[0].unit}")
        if len(names) > 1:
            axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"--plot: {path} cannot be written: {error.strerror}") from None


def _label(one: Quantity) -> str:
    name, _, percentile = one.name.partition("_p")
    return f"{name.upper()} p{percentile}" if percentile.isdecimal() else one.name


def _value(one: Quantity) -> str:
    return "unknown" if one.prediction is None else _figure(one.prediction.value, one.unit)


def _interval(one: Quantity) -> str:
    found: Prediction | None = one.prediction
    if found is None or found.lower == found.upper:
        return ""
    if found.upper == np.inf:
        return "not known"
    judged = "" if found.coverage is not None else " (judged)"
    return f"{_figure(found.lower, one.unit)} to {_figure(found.upper, one.unit)}{judged}"


def _basis(one: Quantity) -> str:
    if one.prediction is None:
        return one.reason or one.provenance
    return f"{one.provenance}; extrapolated" if one.extrapolates else one.provenance


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return format_duration(value)
    return f"{value:.1%}" if unit == "of 16 bits" else f"{value:.4g} {unit}"
