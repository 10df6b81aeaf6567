"""What is asked of an energy meter, and what it answers.

A meter samples in the background from the moment it is entered, because which seconds were the steady state is known
only afterwards::

    enter                  start_s                        end_s               exit
      │ load model │ warm-up  │   steady state, counted     │ drain, cool-down  │
      ├────────────┴──────────┼─────────────────────────────┼───────────────────┤
      ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·  ·    samples, every 50 ms
        ┌───────┐       ┌───────┐       ┌───────┐       ┌───────┐       ┌───────
    ────┘       └───────┘       └───────┘       └───────┘       └───────┘           the counter ticks, every ~100 ms
                              ▲                             ▲
                              between(start_s, end_s) ──► EnergyReading

The counter is interpolated between its ticks to both ends of the window, and polled power is integrated over the same
window by the trapezoid rule. Both are given: they are independent where a device has both, and a disagreement shows a
sensor that sees part of the time only. Times are those of :func:`time.perf_counter`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

SHORT_WINDOW_S = 30.0
"""Shorter windows are marked: A100 and H100 sample a quarter of the time only (arXiv 2312.02741)."""

_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """Energy of one window, all devices of the meter together; ``None`` where it could not be measured.

    Attributes
    ----------
    start_s, end_s
        Ends of the window, in seconds of :func:`time.perf_counter`.
    source
        ``nvml``, ``rapl`` or ``none``.
    devices
        Names of the devices that are summed.
    energy_counter_j
        From the devices' energy counters, in joules.
    energy_polled_j
        Integral of polled power, in joules.
    temperature_max_c
        Highest temperature of any device, in degrees Celsius.
    sm_clock_mean_mhz
        Mean SM clock over samples and devices, in MHz.
    throttle_reasons
        Why any device ran below its clocks, sorted.
    note
        Why something is ``None``, and what to know before trusting the rest; ``None`` when there is nothing to say.
    """

    start_s: float
    end_s: float
    source: str
    devices: tuple[str, ...] = ()
    energy_counter_j: float | None = None
    energy_polled_j: float | None = None
    temperature_max_c: float | None = None
    sm_clock_mean_mhz: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    note: str | None = None

    @property
    def duration_s(self) -> float:
        """Length of the window in seconds."""
        return self.end_s - self.start_s

    @property
    def energy_j(self) -> float | None:
        """The counter's energy, or that of polled power where there is no counter."""
        return self.energy_polled_j if self.energy_counter_j is None else self.energy_counter_j

    @property
    def power_w(self) -> float | None:
        """Mean power over the window in watts."""
        return None if self.energy_j is None else self.energy_j / self.duration_s


class Meter(Protocol):
    """Samples devices while it is entered; a context manager."""

    @property
    def source(self) -> str:
        """``nvml``, ``rapl`` or ``none``."""

    @property
    def driver(self) -> str | None:
        """Version of the GPU driver; ``None`` without one, and before the meter is entered."""

    def between(self, start_s: float, end_s: float) -> EnergyReading:
        """Return the energy between two past moments of :func:`time.perf_counter`.

        May wait a fraction of a second for the counter's first tick after `end_s`. What could not be measured is
        ``None`` with the reason in the reading's note; nothing is raised for it.
        """

    def save(self, path: Path) -> None:
        """Write the samples kept so far as JSON lines, for :class:`~qplan.measure.energy.replay.ReplayMeter`."""

    def __enter__(self) -> Self:
        """Start sampling.

        Raises
        ------
        MeasurementError
            A device is not there or cannot be read at all.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling; the samples are kept."""


def measure_energy(meter: Meter, seconds: float, progress: Callable[[float], object] | None = None) -> EnergyReading:
    """Measure from now on for a while; `meter` is entered already.

    Parameters
    ----------
    seconds
        Length of the window.
    progress
        Called with the seconds gone by since the last call.
    """
    start_s = last_s = time.perf_counter()
    end_s = start_s + seconds
    while (left_s := end_s - time.perf_counter()) > 0:
        time.sleep(min(left_s, _PROGRESS_S))
        now_s = min(time.perf_counter(), end_s)
        if progress is not None:
            progress(now_s - last_s)
        last_s = now_s
    return meter.between(start_s, end_s)


def measure_idle(
    meter: Meter, seconds: float = SHORT_WINDOW_S, progress: Callable[[float], object] | None = None
) -> EnergyReading:
    """Measure the power of devices that hold a model and serve nothing; its ``power_w`` is ``idle_power_w``.

    Call it once a server, after a warm-up: clocks fall and the card cools for some seconds after the last request.
    """
    return measure_energy(meter, seconds, progress)
