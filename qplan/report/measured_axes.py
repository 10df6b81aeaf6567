"""What the figures of measurements share: style, axes, legends, and the picture at the end."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.report.measured_summary import Spread, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 150

_LABEL_SEPARATION = 0.055  # of a panel's width: a line of its rotated scheme names
_NARROWEST = 1.5  # a logarithmic axis spans this factor at least, so that noise does not look like a trend
_FEWEST_TICKS = 4
_TICK_STEPS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    *(tuple(step / 100 for step in range(100, 1000, width)) for width in (50, 20, 10, 5, 2)),
)
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are text, whatever signs they hold
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished figure.

    Attributes
    ----------
    name
        Stem of a file name; two figures may share it.
    title
        Heading on a page.
    caption
        What is shown and how to read it.
    png
        The picture; the same observations give the same bytes.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the reports, and leave matplotlib's settings as they were.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError("figures need matplotlib: pip install 'qplan[plots]'") from None
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for the sign
        yield


def grid(count: int, *, title: str, panel: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Make a figure of so many panels, three a row at most."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(panel[0] * columns + 1.6, panel[1] * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    return figure, axes


def finished(name: str, title: str, caption: str, figure: Figure) -> Drawn:
    """Render a figure; matplotlib's version stays out of the file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return Drawn(name, title, caption, figure, buffer.getvalue())


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend of all panels beside them."""
    entries: dict[str, Any] = {}
    for at in axes:
        for handle, label in zip(*at.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper")


def bars(at: Axes, points: Sequence[tuple[float, Spread]], label: str, **look: Any) -> None:
    """Draw a line through medians, with the range at each; nothing where there is no point."""
    if not points:
        return
    xs, values = [x for x, _ in points], [spread.value for _, spread in points]
    errors = [[s.value - s.low for _, s in points], [s.high - s.value for _, s in points]]
    at.errorbar(xs, values, errors, label=label, elinewidth=0.9, capsize=2, linewidth=1.2, **look)


def bits_axis(at: Axes, variants: Sequence[Variant]) -> None:
    """Scale bits logarithmically, and name each scheme above the panel where its bits are."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    bits = {v.scheme: v.bits for v in variants if v.bits is not None}
    low, high = min(bits.values(), default=4) / 1.12, max(bits.values(), default=16) * 1.12
    at.set_xscale("log", base=2)
    at.set_xlim(low, high)
    usual = [b for b in (1, 2, 3, 4, 5, 6, 8, 12, 16, 32) if low <= b <= high]
    at.xaxis.set_major_locator(FixedLocator(usual if len(usual) > 1 else round_numbers(low, high)))
    at.xaxis.set_minor_locator(NullLocator())
    at.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    at.set_xlabel("bits per weight")
    at.grid(visible=False, axis="x")  # the lines of the schemes take its place
    ordered = sorted(bits.items(), key=lambda item: item[1])
    places = [math.log(b / low) / math.log(high / low) for _, b in ordered]
    for (scheme, b), place, label in zip(ordered, places, apart(places, _LABEL_SEPARATION), strict=True):
        at.axvline(b, color="#d8d8d8", linewidth=0.6, zorder=0)
        at.annotate(
            scheme,
            xy=(place, 1.0),
            xytext=(label, 1.05),
            xycoords="axes fraction",
            textcoords="axes fraction",
            rotation=60,
            fontsize=7.5,
            ha="left",
            va="bottom",
            rotation_mode="anchor",
            color="#333333",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def apart(places: Sequence[float], separation: float) -> list[float]:
    """Move ascending places as little as needed so that neighbours keep their distance."""
    # Places that would touch form a cluster, which stays centred on its mean; clusters that meet are merged.
    clusters: list[list[float]] = []
    for place in places:
        clusters.append([place])
        while len(clusters) > 1 and _end(clusters[-2], separation, 1) + separation > _end(clusters[-1], separation, -1):
            last = clusters.pop()
            clusters[-1] += last
    return [_end(c, separation, -1) + i * separation for c in clusters for i in range(len(c))]


def _end(cluster: Sequence[float], separation: float, side: int) -> float:
    return sum(cluster) / len(cluster) + side * separation * (len(cluster) - 1) / 2


def scale(at: Axes, axis: str, spreads: Sequence[Spread], *, log: bool) -> None:
    """Choose the scale of an axis: logarithmic with plain round numbers, or linear from zero."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    if not log or not spreads or any(spread.value <= 0 for spread in spreads):
        at.set(**{f"{axis}lim": (0, None)})
        return
    # An error bar that reaches 0 ends at the edge: it must not cost the other points their scale.
    low = min(spread.low if spread.low > 0 else spread.value / 2 for spread in spreads)
    high = max(spread.high for spread in spreads)
    margin = max((high / low) ** 0.06, (_NARROWEST * low / high) ** 0.5)
    at.set(**{f"{axis}scale": "log", f"{axis}lim": (low / margin, high * margin)})
    lines = at.xaxis if axis == "x" else at.yaxis
    lines.set_major_locator(FixedLocator(round_numbers(low / margin, high * margin)))
    lines.set_minor_locator(NullLocator())
    lines.set_major_formatter(StrMethodFormatter("{x:g}"))


def round_numbers(low: float, high: float) -> list[float]:
    """Return a handful of numbers between two positive ones, as round as can be."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in _TICK_STEPS:
        found = [float(f"{step}e{power}") for power in decades for step in steps]
        found = [number for number in found if low <= number <= high]
        if len(found) >= _FEWEST_TICKS:
            break
    return found


def shades(count: int) -> list[Any]:
    """Take evenly spaced colours of viridis, without its palest end."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * index / max(count - 1, 1)) for index in range(count)]


def slug(*parts: str) -> str:
    """Make a file name's stem of letters, digits, dots and dashes."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == ".") else "-" for c in "-".join(parts).casefold())
    return "-".join(word for word in plain.split("-") if word.strip("."))[:150]
