"""The figure of a calibration: error against the number of points measured."""

from __future__ import annotations

import numpy as np

from qplan.models.calibration.curve import Curve
from qplan.report.measured_axes import Drawn, finished, grid, style

_NAMES = {"ttft": "time to first token", "tpot": "time per output token"}


def draw_curve(curve: Curve, title: str = "Error after calibration on a few points") -> Drawn:
    """Draw a panel for each metric: median and 90th percentile of the error over rows, and the median of each family.

    The dotted line is the prior as it is; 0 points are the lessons of other systems alone.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    from matplotlib.ticker import PercentFormatter

    with style():
        figure, axes = grid(len(curve.calibrated), title=title, panel=(4.2, 3.0))
        for at, metric in zip(axes, curve.calibrated, strict=True):
            by_count = curve.calibrated[metric]
            counts = list(by_count)
            summaries = [curve.errors(metric, count) for count in counts]
            places = range(len(counts))
            for family in dict.fromkeys(name for families in by_count.values() for name in families):
                here = [n for n, count in enumerate(counts) if family in by_count[count]]
                medians = [float(np.median(by_count[counts[n]][family])) for n in here]
                at.plot(here, medians, color="#c8c8c8", linewidth=0.7, zorder=1)
            at.plot(places, [one.p90 for one in summaries], "s--", color="#D55E00", label="90th percentile of rows")
            at.plot(places, [one.median for one in summaries], "o-", color="#0072B2", label="median of rows")
            prior = curve.errors(metric, None).median
            at.axhline(prior, color="#000000", linestyle=":", linewidth=1, label="median, uncorrected")
            at.set_yscale("log")
            at.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            at.yaxis.set_minor_formatter("")
            at.set_xticks(places, [str(count) for count in counts])
            at.set(title=_NAMES.get(metric, metric), xlabel="points measured", ylabel="|predicted / measured - 1|")
        axes[0].legend(loc="lower left")
        return finished("calibration-curve", title, _CAPTION, figure)


_CAPTION = (
    "Each family of runs is calibrated on a few of its rows and judged on its others, with lessons from other systems "
    "alone. Grey: the median of each family. With more points, families with few rows drop out."
)
