"""A double that replays what a real meter recorded."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from qplan.measure.energy.meter import EnergyReading
from qplan.measure.energy.timeline import load_timelines, read_window, save_timelines


class ReplayMeter:
    """Answers from a timeline that a real meter saved.

    Once entered, the moment of entering stands for the start of the recording, so the double can take the place of
    the meter in a run; before that, windows are in the recording's own time.

    Parameters
    ----------
    path
        File of JSON lines, as :meth:`Meter.save` wrote it.

    Raises
    ------
    InputError
        The file is not a recorded timeline.
    """

    def __init__(self, path: Path) -> None:
        self.source, self.driver, self._timelines = load_timelines(path)
        self._shift_s = 0.0

    @property
    def recorded_s(self) -> tuple[float, float]:
        """First and last moment of the recording, in its own time."""
        times = [sample.time_s for line in self._timelines for sample in line.samples]
        return (min(times), max(times)) if times else (0.0, 0.0)

    def __enter__(self) -> Self:
        self._shift_s = time.perf_counter() - self.recorded_s[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def between(self, start_s: float, end_s: float) -> EnergyReading:
        """Return the energy that was recorded between two moments; see :meth:`Meter.between`."""
        reading = read_window(self.source, self._timelines, start_s - self._shift_s, end_s - self._shift_s)
        return replace(reading, start_s=start_s, end_s=end_s)

    def save(self, path: Path) -> None:
        """Write the recording again."""
        save_timelines(path, self.source, self.driver, self._timelines)
