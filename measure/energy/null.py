"""The meter of a machine without an energy counter: every reading is null, with the reason."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from qplan.core.errors import MeasurementError
from qplan.measure.energy.meter import EnergyReading


class NullMeter:
    """Measures nothing and says why.

    Parameters
    ----------
    reason
        What was looked for and not found; the note of every reading.
    """

    source = "none"
    driver: str | None = None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def between(self, start_s: float, end_s: float) -> EnergyReading:
        """Return a reading without numbers."""
        return EnergyReading(start_s, end_s, self.source, note=self.reason)

    def save(self, path: Path) -> None:
        """Refuse: there is nothing to write."""
        raise MeasurementError(f"{path}: no samples to write: {self.reason}")
