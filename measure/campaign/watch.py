"""A look at a server, every second, while a point is measured: is it alive, and what does it say of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import MeasurementError

if TYPE_CHECKING:
    from qplan.measure.campaign.events import Stopping
    from qplan.measure.engines.contract import Server

INTERVAL_S = 1.0


class Watch:
    """Watches a server in a thread of its own while its ``with`` block runs.

    Parameters
    ----------
    server
        The server.
    stopping
        Says whether the campaign is to stop.
    limit_s
        Longest time for what is measured; ``None`` for no limit of its own.

    Attributes
    ----------
    error
        Why the server is dead; ``None`` while it lives.
    """

    def __init__(self, server: Server, stopping: Stopping, limit_s: float | None = None) -> None:
        self.error: MeasurementError | None = None
        self._server = server
        self._stopping = stopping
        self._deadline = None if limit_s is None else time.perf_counter() + limit_s
        self._over = threading.Event()
        self._samples: list[tuple[float, ...]] = []
        self._thread = threading.Thread(target=self._look, name="qplan-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def halted(self) -> bool:
        """Whether measuring is to end now: the server is dead, the time is up, or the user says so."""
        return self.error is not None or self._stopping() or self.late()

    def late(self) -> bool:
        """Whether the time is up."""
        return self._deadline is not None and time.perf_counter() > self._deadline

    def raise_if_dead(self) -> None:
        """Raise the error of a dead server; looks once more, since it may have died a moment ago."""
        if self.error is None:
            self._server.check()
        else:
            raise self.error

    def columns(self, start_s: float, end_s: float) -> dict[str, float | None]:
        """Return what the server said between two times of :func:`time.perf_counter`, as columns of an observation."""
        samples = np.array(self._samples, dtype=float).reshape(-1, 5)
        inside = samples[(samples[:, 0] >= start_s) & (samples[:, 0] <= end_s)]
        return {
            "running_mean": _known(inside[:, 1], np.mean),
            "waiting_mean": _known(inside[:, 2], np.mean),
            "kv_usage_max": _known(inside[:, 3], np.max),
            "server_cpu_cores": _rate(inside[:, 0], inside[:, 4]),
        }

    def _look(self) -> None:
        while True:
            try:
                self._server.check()
                state = self._server.state()
                said = (state.running, state.waiting, state.kv_usage, self._server.cpu_s())
                self._samples.append((time.perf_counter(), *(np.nan if value is None else value for value in said)))
            except MeasurementError as error:
                self.error = error
                return
            if self._over.wait(INTERVAL_S):
                return


def _known(values: np.ndarray, summary: Callable[[np.ndarray], np.floating]) -> float | None:
    """Summarize the values that are known; ``None`` where none is."""
    known = values[~np.isnan(values)]
    return float(summary(known)) if known.size else None


def _rate(times: np.ndarray, totals: np.ndarray) -> float | None:
    """Return the slope of a counter between its first and last known value."""
    known = ~np.isnan(totals)
    times, totals = times[known], totals[known]
    return float((totals[-1] - totals[0]) / (times[-1] - times[0])) if times.size > 1 else None
