"""Forecasts of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError
from qplan.core.units import format_duration
from qplan.models.forecast import forecast
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from qplan.core.plan import Prediction
    from qplan.models.fittedloads import FittedLoads
    from qplan.models.forecast import Forecast, Quantity, StepsSource

_POINTS = 19  # at which a plot reads the forecast
_FORMATS = (".png", ".svg", ".pdf")
_PANELS = (
    ("TTFT", ("ttft_p50", "ttft_p90", "ttft_mean")),
    ("TPOT", ("tpot_p50", "tpot_p90", "tpot_mean")),
    ("energy", ("j_per_token",)),
)
_WORDS = {"output_tokens_per_s": "output", "power_w": "power", "j_per_token": "energy"}


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
    if found.saturation_qps is None:
        out.print(f"\n{found.qps:g} req/s; nobody has searched for the highest rate that it takes")
    else:
        share = found.qps / found.saturation_qps
        out.print(f"\n{found.qps:g} req/s is {share:.0%} of the highest stable rate, {found.saturation_qps:.3g} req/s")
    for warning in found.warnings:
        out.print(f"[yellow]warning[/yellow]  {warning}", highlight=False)


def draw_forecast(fitted: StepsSource | FittedLoads, found: Forecast, path: Path) -> None:
    """Draw latency and energy over the loads that can be told of, with their intervals.

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
    loads = np.linspace(*found.rates, _POINTS)
    curves = [forecast(fitted, found.deployment, found.workload, float(qps)) for qps in loads]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(f"{found.deployment}, {found.workload.name}")
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        shown = [one for one in found.quantities if one.name in names]
        for quantity in shown:
            known = [(qps, one) for qps, curve in zip(loads, curves, strict=True) if (one := _of(curve, quantity.name))]
            if not known:
                continue
            at, drawn = [qps for qps, _ in known], [one for _, one in known]
            (line,) = axes.plot(at, [one.value for one in drawn], label=quantity.name.rpartition("_")[2])
            if all(one.upper < np.inf for one in drawn):
                lower, upper = [one.lower for one in drawn], [one.upper for one in drawn]
                axes.fill_between(at, lower, upper, alpha=0.15, color=line.get_color())
        axes.set_title(f"{title}, {shown[0].unit}")
        if not axes.lines:
            axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center")
            axes.set_axis_off()
            continue
        if found.rates[0] <= found.qps <= found.rates[1]:
            axes.axvline(found.qps, color="grey", linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        axes.set_xlabel("requests/s")
        if len(shown) > 1:
            axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"--plot: {path} cannot be written: {error.strerror}") from None


def _of(found: Forecast, name: str) -> Prediction | None:
    """Return a quantity's prediction, if there is one."""
    return next((one.prediction for one in found.quantities if one.name == name), None)


def _label(one: Quantity) -> str:
    name, _, percentile = one.name.partition("_p")
    return f"{name.upper()} p{percentile}" if percentile.isdecimal() else _WORDS.get(one.name, one.name)


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
