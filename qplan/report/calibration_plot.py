"""The calibration of intervals as a figure: how many truths they were to hold against how many they held."""

from __future__ import annotations

from collections.abc import Mapping

from qplan.report.measured_axes import Drawn, finished, grid, legend, style

# Okabe and Ito's palette, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vP"


def draw_calibration(panels: Mapping[str, Mapping[str, Mapping[float, float]]], title: str) -> Drawn:
    """Draw nominal against empirical coverage, one panel for each question.

    Parameters
    ----------
    panels
        By question, by series: the share of held-out truths inside, by the share promised; both from 0 to 1.
    title
        What was predicted, and on what data.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    series = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    with style():
        figure, axes = grid(len(panels), title=title, panel=(3.4, 3.4))
        for at, (question, curves) in zip(axes, panels.items(), strict=True):
            at.plot([0, 1], [0, 1], color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), label="as promised")
            for name, held in curves.items():
                look = series.index(name) % len(_COLOURS)
                promised = sorted(held)
                at.plot(
                    promised,
                    [held[share] for share in promised],
                    label=name,
                    color=_COLOURS[look],
                    marker=_MARKERS[look],
                    markerfacecolor="white",
                )
            at.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=question)
            at.set(xlabel="coverage promised", ylabel="held-out truths inside")
        legend(figure, axes)
        caption = (
            "Share of held-out truths inside the intervals, by the share promised; below the dashed line too few are."
        )
        return finished("calibration", f"{title}: calibration of intervals", caption, figure)
