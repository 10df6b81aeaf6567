"""A study as a figure: the front, how its hypervolume grew, and what moves each objective."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.core.units import GIB
from qplan.report.measured_axes import Drawn, finished, grid, legend, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplan.solvers.tuning.summary import Found, Summary

_PANEL = (4.6, 3.6)
# Okabe and Ito's colours, which colour-blind readers tell apart; the form of each says it again.
_FRONT, _DOMINATED, _OVER, _ABANDONED = "#0072B2", "#8c8c8c", "#D55E00", "#CC79A7"
_OBJECTIVES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_LOOKS = {
    "front": ("o", _FRONT),
    "dominated": ("o", _DOMINATED),
    "over a limit": ("s", _OVER),
    "abandoned": ("D", _ABANDONED),
}
_TRIAL = "trial"  # the other axis of a study of one objective
_BOUND = "open, with an arrow:\na bound, the value is\nthere or further on"
_ARROW = 17.0  # points
_ROOM = 0.1  # of a panel's range, around its points: for arrows and numbers
_LETTER = (4.8, 6.5)  # points, of a number: width and height
_DOT = 3.0  # points from the middle of a point to its edge


@dataclass(frozen=True, slots=True)
class _Mark:
    """A configuration in a panel; `beyond` says for each axis where the value is: -1 below, 0 here, 1 above."""

    one: Found
    at: tuple[float, float]
    beyond: tuple[int, int]


def draw_study(summary: Summary) -> Drawn:
    """Draw a study.

    Raises
    ------
    InputError
        Nothing was measured yet, or matplotlib is not installed.
    """
    measured = [one for one in summary.found if one.how in ("dominated", "over a limit", "front")]
    if not measured:
        raise InputError(f"study {summary.study}: nothing is measured yet")
    names = list(summary.units)
    pairs = list(itertools.combinations(names, 2)) or [(_TRIAL, names[0])]
    with style():
        title = f"{summary.study}: {len(summary.front)} of {len(measured)} measured configurations are on the front"
        figure, axes = grid(len(pairs) + 2, title=title, panel=_PANEL)
        for at, (x, y) in zip(axes, pairs, strict=False):
            _trade(at, x, y, summary)
        _growth(axes[len(pairs)], summary)
        _importance(axes[len(pairs) + 1], summary)
        legend(figure, axes[: len(pairs)])
        caption = (
            "Each point is a configuration; those of the front, with the numbers of their trials, are beaten by no "
            "other on all objectives together, so that some lie behind others in a panel of two. An open point with an "
            "arrow is a bound: the value is there, or further the way that the arrow points. Hypervolume is a share of "
            "what was found in the end; the dashed line is 95 %. Importance is the share of an objective's variance "
            "that a parameter tells (functional ANOVA)."
        )
        return finished("study", f"Study {summary.study}", caption, figure)


def _trade(at: Axes, x: str, y: str, summary: Summary) -> None:
    """Draw two objectives against each other, or one over the trials."""
    marks = [mark for one in summary.found if one.how in _LOOKS and (mark := _mark(one, x, y, summary)) is not None]
    scales = [_scale(summary.units.get(name, ""), [mark.at[n] for mark in marks]) for n, name in enumerate((x, y))]
    for layer, (how, (marker, colour)) in enumerate(reversed(_LOOKS.items()), start=3):  # the front on top
        own = [mark for mark in marks if mark.one.how == how]
        for is_bound, face in ((False, colour), (True, "white")):
            points = [_scaled(mark, scales) for mark in own if any(mark.beyond) == is_bound]
            if points:
                look: dict[str, Any] = {"marker": marker, "color": colour, "markerfacecolor": face, "zorder": layer}
                at.plot(*zip(*points, strict=True), linestyle="none", label=how, **look)
        for mark in own:
            _arrow(at, _scaled(mark, scales), mark.beyond, colour)
    if any(any(mark.beyond) for mark in marks):
        at.plot([], [], linestyle="none", marker="o", color="#333333", markerfacecolor="white", label=_BOUND)
    at.margins(_ROOM)
    at.autoscale_view()
    labels = [str(mark.one.trial) if mark.one.how == "front" else "" for mark in marks]
    _numbers(at, list(zip(labels, [_scaled(mark, scales) for mark in marks], strict=True)))
    for axis, name, (_, unit) in zip((at.xaxis, at.yaxis), (x, y), scales, strict=True):
        better = {"maximize": " (more is better)", "minimize": " (less is better)"}
        axis.set_label_text(f"{name}{f', {unit}' if unit else ''}{better.get(summary.directions.get(name, ''), '')}")


def _mark(one: Found, x: str, y: str, summary: Summary) -> _Mark | None:
    """Return where a configuration is drawn; ``None`` where nothing is known of an axis."""
    places: list[float] = []
    beyond = []
    for name in (x, y):
        better = 1 if summary.directions.get(name) == "maximize" else -1
        if name == _TRIAL:
            places.append(one.trial)
            beyond.append(0)
        elif name in one.values:
            places.append(one.values[name])
            beyond.append(better if name in one.bounds else 0)
        elif name in one.at_best:
            places.append(one.at_best[name])
            beyond.append(-better)
        else:
            return None
    return _Mark(one, (places[0], places[1]), (beyond[0], beyond[1]))


def _scaled(mark: _Mark, scales: Sequence[tuple[float, str]]) -> tuple[float, float]:
    return mark.at[0] * scales[0][0], mark.at[1] * scales[1][0]


def _scale(unit: str, values: Sequence[float]) -> tuple[float, str]:
    """Return what a unit is multiplied with to be read on an axis, and the unit that results."""
    if unit == "bytes":
        return (1 / GIB, "GiB") if max(values, default=0.0) >= GIB else (1 / 2**20, "MiB")
    if unit == "s" and max(values, default=1.0) < 1:
        return 1e3, "ms"
    return 1.0, unit


def _arrow(at: Axes, point: tuple[float, float], beyond: tuple[int, int], colour: str) -> None:
    """Point from a bound to where the value is, along each axis of which only a bound is known."""
    for x, y in ((beyond[0], 0), (0, beyond[1])):
        if x or y:
            at.annotate(
                "",
                xy=point,
                xytext=(x * _ARROW, y * _ARROW),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": colour, "shrinkA": 0, "shrinkB": 3},
            )


def _numbers(at: Axes, labelled: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Write each label beside its point, where there is room between the others; tables have them all."""
    points = [(text, at.transData.transform(place) * 72 / at.figure.dpi, place) for text, place in labelled]
    taken = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for _, (x, y), _ in points]
    for text, (x, y), place in points:
        if not text:
            continue
        width, height = _LETTER[0] * len(text), _LETTER[1]
        for right, up in itertools.product((1, -1), (1, -1)):
            left, low = x + right * _DOT - (right < 0) * width, y + up * _DOT - (up < 0) * height
            box = (left, low, left + width, low + height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at.annotate(
                    text,
                    xy=place,
                    xytext=(left - x, low - y),
                    textcoords="offset points",
                    fontsize=7.5,
                    color="#333333",
                )
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _growth(at: Axes, summary: Summary) -> None:
    """Draw the hypervolume over measurements."""
    from matplotlib.ticker import MaxNLocator

    counts = range(len(summary.hypervolume) + 1)
    at.plot(counts, [0.0, *summary.hypervolume], drawstyle="steps-post", marker=".", color=_FRONT)
    at.axhline(0.95, color="#999999", linewidth=0.8, linestyle="--")
    at.xaxis.set_major_locator(MaxNLocator(integer=True))
    at.set(xlabel="configurations measured", ylabel="hypervolume, share of the last", ylim=(0, 1.05))


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
    for (number, (objective, shares)), colour in zip(enumerate(told.items()), itertools.cycle(_OBJECTIVES)):
        places = [index + number * height for index in range(len(parameters))]
        widths = [shares.get(name, 0.0) for name in parameters]
        at.barh(places, widths, height=height, label=objective, color=colour)
    at.set_yticks([index + 0.4 - height / 2 for index in range(len(parameters))], parameters)
    at.set_axisbelow(True)
    at.grid(visible=False, axis="y")
    at.invert_yaxis()
    at.set(xlabel="importance: share of the variance", xlim=(0, 1))
    at.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.2, handlelength=1.2)
