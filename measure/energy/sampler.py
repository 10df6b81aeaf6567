"""The background thread that samples devices: what the real meters share."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from qplan.core.errors import MeasurementError
from qplan.measure.energy.meter import EnergyReading
from qplan.measure.energy.timeline import Sample, Timeline, read_window, save_timelines

PERIOD_S = 0.05
"""Half a tick of NVML's counter."""

KEEP_S = 1800.0
"""How far back windows can reach; older samples are dropped, so that a campaign's memory stays bounded."""

SETTLE_S = 0.25
"""How long after a window its counter has ticked again for sure."""


class SampledMeter(ABC):
    """A meter whose devices are read every 50 ms by a thread of its own.

    A subclass says which devices there are and reads one of them; errors of a single reading are kept as samples, so
    a device that is lost in the middle of a run takes its energy along, not the run.
    """

    source = "none"
    driver: str | None = None

    def __init__(self) -> None:
        self._devices: tuple[tuple[str, str | None], ...] = ()
        self._samples: tuple[deque[Sample], ...] = ()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _open(self) -> tuple[tuple[str, str | None], ...]:
        """Make the devices readable; return the name of each and what to know of it."""

    @abstractmethod
    def _read(self, device: int) -> Sample:
        """Read one device; raises :class:`MeasurementError` when it cannot be read."""

    def _close(self) -> None:  # noqa: B027  # not every meter holds something
        """Let go of the devices."""

    def __enter__(self) -> Self:
        self._devices = self._open()
        self._samples = tuple(deque(maxlen=round(KEEP_S / PERIOD_S)) for _ in self._devices)
        self._stop.clear()
        self._sample_all()  # a window may start at once
        self._thread = threading.Thread(target=self._run, name=f"qplan-energy-{self.source}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._close()

    def between(self, start_s: float, end_s: float) -> EnergyReading:
        """Return the energy of all devices between two past moments; see :meth:`Meter.between`."""
        if self._thread is not None and end_s <= time.perf_counter():
            time.sleep(max(0.0, end_s + SETTLE_S - time.perf_counter()))
        return read_window(self.source, self._timelines(), start_s, end_s)

    def save(self, path: Path) -> None:
        """Write the samples kept so far as JSON lines."""
        save_timelines(path, self.source, self.driver, self._timelines())

    def _timelines(self) -> tuple[Timeline, ...]:
        with self._lock:
            kept = [tuple(samples) for samples in self._samples]
        return tuple(Timeline(name, s, note) for (name, note), s in zip(self._devices, kept, strict=True))

    def _run(self) -> None:
        """Sample on a fixed grid; a grid point that a slow reading ran past is left out."""
        due_s = time.perf_counter() + PERIOD_S
        while not self._stop.wait(max(0.0, due_s - time.perf_counter())):
            self._sample_all()
            due_s = max(due_s + PERIOD_S, time.perf_counter())

    def _sample_all(self) -> None:
        for device, samples in enumerate(self._samples):
            try:
                sample = self._read(device)
            except MeasurementError as error:
                sample = Sample(time.perf_counter(), error=str(error))
            with self._lock:
                samples.append(sample)
