"""A simulation over time: latencies, load and power."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qplan.report.measured_axes import Drawn, finished, grid, legend, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplan.models.simulator.state import Records
    from qplan.models.steptimes import Floats
    from qplan.report.simulation import Simulated

_BINS = 120
_MOST_LINES = 6  # replicas that get a line each; of more, their range is drawn


class Recorder:
    """Keeps arrival, TTFT and TPOT of each request: what the figure needs and a summary does not keep."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    def add(self, done: Records) -> None:
        """Keep requests that are done."""
        self._parts.append(np.stack([done["arrival_s"], done["ttft_s"], done["tpot_s"]]))

    def columns(self) -> Floats:
        """Return arrivals, TTFT and TPOT, (3, N) seconds; NaN where there is none."""
        return np.concatenate([np.zeros((3, 0)), *self._parts], axis=1)


def draw(columns: Floats, simulated: Simulated) -> Drawn:
    """Draw TTFT and TPOT by time of arrival, and running sequences and power of the replicas by time."""
    arrivals_s, ttft_s, tpot_s = columns
    replicas = simulated.use.replicas
    powers = [replica.power_w for replica in replicas if replica.power_w is not None]
    with style():
        figure, axes = grid(4, title=simulated.source, panel=(4.6, 2.8))
        _latencies(axes[0], arrivals_s, ttft_s, 1.0, "TTFT (s)")
        _latencies(axes[1], arrivals_s, tpot_s, 1e3, "TPOT (ms)")
        _lines(axes[2], simulated, [replica.running for replica in replicas], "running sequences")
        if len(powers) == len(replicas):
            _lines(axes[3], simulated, powers, "power (W)")
        else:
            _lines(axes[3], simulated, [replica.output_tokens_per_s for replica in replicas], "output tokens/s")
        legend(figure, axes)
        caption = (
            "Latencies by the time of arrival, in bins of equal width: median and 90th percentile. Below, means over "
            "bins of time, of each replica or, of many, the range and the mean of all."
        )
        return finished("simulation", simulated.source, caption, figure)


def _latencies(at: Axes, arrivals_s: Floats, values_s: Floats, factor: float, label: str) -> None:
    known = ~np.isnan(values_s)
    arrivals_s, values = arrivals_s[known], values_s[known] * factor
    if len(values):
        edges = np.linspace(0, arrivals_s.max(), _BINS + 1)
        bins = np.clip(np.searchsorted(edges, arrivals_s, side="right") - 1, 0, _BINS - 1)
        order = np.argsort(bins, kind="stable")
        groups = np.split(values[order], np.searchsorted(bins[order], np.arange(1, _BINS)))
        for percentile, colour in ((50, "#0072B2"), (90, "#D55E00")):
            line = [float(np.percentile(group, percentile)) if len(group) else np.nan for group in groups]
            at.plot((edges[:-1] + edges[1:]) / 2, line, color=colour, label=f"p{percentile}")
    at.set(xlabel="time (s)", ylabel=label, ylim=(0, None))


def _lines(at: Axes, simulated: Simulated, series: list[Floats], label: str) -> None:
    replicas = simulated.use.replicas
    times = [replica.bin_s * (np.arange(len(values)) + 0.5) for replica, values in zip(replicas, series, strict=True)]
    if len(series) <= _MOST_LINES:
        for n, (time, values) in enumerate(zip(times, series, strict=True)):
            at.plot(time, values, label=f"{n + 1}: {replicas[n].name}", linewidth=1, color=f"C{n}")
    else:
        length = max(map(len, series))
        stacked = np.stack([np.pad(values, (0, length - len(values))) for values in series])
        time = max(times, key=len)
        at.fill_between(time, stacked.min(axis=0), stacked.max(axis=0), color="#bbbbbb", label="range of replicas")
        at.plot(time, stacked.mean(axis=0), color="#000000", label="mean of replicas")
    at.set(xlabel="time (s)", ylabel=label, ylim=(0, None))
