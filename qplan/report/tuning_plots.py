"""A study as a figure: the front, how its hypervolume grew, and what moves each objective."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from qplan.core.errors import InputError
from qplan.core.units import GIB
from qplan.report.measured_axes import Drawn, finished, grid, legend, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplan.solvers.tuning.summary import Found, Summary

_PANEL = (4.6, 3.4)
_LOOKS = {
    "dominated": ("o", "#bbbbbb"),
    "over a limit": ("x", "#c44e52"),
    "front": ("o", "#1f5fa8"),
}


def draw_study(summary: Summary) -> Drawn:
    """Draw a study.

    Raises
    ------
    InputError
        Nothing was measured yet, or matplotlib is not installed.
    """
    measured = [one for one in summary.found if one.how in _LOOKS]
    if not measured:
        raise InputError(f"study {summary.study}: nothing is measured yet")
    names = list(summary.units)
    pairs = list(itertools.combinations(names, 2)) or [(names[0], names[0])]
    with style():
        title = f"{summary.study}: {len(summary.front)} of {len(measured)} measured configurations are on the front"
        figure, axes = grid(len(pairs) + 2, title=title, panel=_PANEL)
        for at, (x, y) in zip(axes, pairs, strict=False):
            _trade(at, measured, x, y, summary)
        _growth(axes[len(pairs)], summary)
        _importance(axes[len(pairs) + 1], summary)
        legend(figure, axes[: len(pairs)])
        caption = (
            "Each point is a measured configuration; blue ones are beaten by no other on all objectives together, so "
            "that some lie behind others in a panel of two. Hypervolume is a share of what was found in the end. "
            "Importance is the share of an objective's variance that a parameter tells (functional ANOVA)."
        )
        return finished("study", f"Study {summary.study}", caption, figure)


def _trade(at: Axes, measured: list[Found], x: str, y: str, summary: Summary) -> None:
    """Draw two objectives against each other."""
    for how, (marker, colour) in _LOOKS.items():
        points = [one for one in measured if one.how == how and x in one.values and y in one.values]
        if points:
            xs, ys = ([one.values[name] * _scale(summary.units[name])[0] for one in points] for name in (x, y))
            at.plot(xs, ys, linestyle="none", marker=marker, color=colour, label=how)
    for axis, name in ((at.xaxis, x), (at.yaxis, y)):
        unit = _scale(summary.units[name])[1]
        better = "more" if summary.directions[name] == "maximize" else "less"
        axis.set_label_text(f"{name}{f', {unit}' if unit else ''} ({better} is better)")


def _scale(unit: str) -> tuple[float, str]:
    """Return what a unit is multiplied with to be read on an axis, and the unit that results."""
    return (1 / GIB, "GiB") if unit == "bytes" else (1.0, unit)


def _growth(at: Axes, summary: Summary) -> None:
    """Draw the hypervolume over measurements."""
    counts = range(1, len(summary.hypervolume) + 1)
    at.plot(counts, summary.hypervolume, drawstyle="steps-post", color="#1f5fa8")
    at.axhline(0.95, color="#999999", linewidth=0.8, linestyle="--")
    at.set(xlabel="configurations measured", ylabel="hypervolume, share of the last", ylim=(0, 1.03))


def _importance(at: Axes, summary: Summary) -> None:
    """Draw what moves each objective as bars, or say why that cannot be told."""
    told = {name: shares for name, shares in summary.importance.items() if not isinstance(shares, str)}
    if not told:
        said = next(iter(summary.importance.values()), "not asked for")
        at.text(0.5, 0.5, f"importance: {said}", ha="center", va="center", transform=at.transAxes)
        at.set_axis_off()
        return
    parameters = list(dict.fromkeys(name for shares in told.values() for name in shares))
    height = 0.8 / len(told)
    for number, (objective, shares) in enumerate(told.items()):
        places = [index + number * height for index in range(len(parameters))]
        at.barh(places, [shares.get(name, 0.0) for name in parameters], height=height, label=objective)
    at.set_yticks([index + 0.4 - height / 2 for index in range(len(parameters))], parameters)
    at.set(xlabel="share of the variance", xlim=(0, 1))
    at.legend()
