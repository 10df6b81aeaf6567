"""One block: an engine is started, its points are measured, and whatever breaks is tried again or recorded.

::

    start ─► measure ─► measure ─► ... ─► stop
      │         │ failed: restart the engine after a pause, try the point again; after the last try record the
      │         │         failure with the engine's last lines and go on with the next point
      └─────────┴ an engine that cannot be started at all fails every point that is left

Runs in this process, in a process of its own, or on another machine: it gets a :class:`Job` and emits events, both
plain data, and touches neither store nor display.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.campaign.events import (
    EngineReady,
    EngineStarting,
    EngineStopped,
    PointFinished,
    PointPutBack,
    PointRetried,
    PointStarted,
    Result,
)
from qplan.measure.campaign.plan import Deadlines
from qplan.measure.campaign.points import Point, Target
from qplan.measure.engines import open_engine
from qplan.measure.engines.contract import EngineError

if TYPE_CHECKING:
    from qplan.measure.campaign.events import Emit, Stopping
    from qplan.measure.campaign.rig import Rig
    from qplan.measure.engines.contract import Prepared, Server

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

_OUT_OF_MEMORY = re.compile(r"out of memory|outofmemory|cannot allocate memory|failed to allocate|oom-kill", re.I)


@dataclass(frozen=True, slots=True)
class Job:
    """A block to measure, with all that is needed where it runs.

    Attributes
    ----------
    number
        Of the block in the grid.
    points
        Those still to be measured, in order.
    devices
        GPUs to use.
    folder, cache
        Where engines write their files, and where quantized weights are kept.
    source
        What observations carry as their source.
    tried
        Failed attempts so far, by key of the point.
    saturation_qps
        Saturation rates that are known, by workload.
    probes
        Probes of searches that were cut short, by key of the point.
    baselines
        Results of the unquantized deployment, by quality task.
    end_s, expected_s
        Time of the system's clock by which the job must be over, and what its points are expected to take, by key: a
        point that does not fit any more is not begun.
    """

    number: int
    target: Target
    points: tuple[Point, ...]
    devices: tuple[int, ...]
    folder: str
    cache: str
    source: str
    energy: bool = True
    phase_energy: bool = True
    retries: int = 1
    processes: int = 1
    deadlines: Deadlines = field(default_factory=Deadlines)
    tried: Mapping[str, int] = field(default_factory=dict)
    saturation_qps: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    end_s: float | None = None
    expected_s: Mapping[str, float] = field(default_factory=dict)

    def has_time_for(self, point: Point) -> bool:
        """Whether a point is expected to be over in time."""
        return self.end_s is None or time.time() + self.expected_s.get(point.key, 0.0) <= self.end_s


class Stopped(Exception):  # noqa: N818  (it is no error)
    """The user asked for an end while a point was measured."""


def measure_block(job: Job, emit: Emit, stopping: Stopping) -> None:
    """Measure the points of a job, emitting an event for everything that happens.

    Parameters
    ----------
    stopping
        Asked often; once it says true, the point at hand is put back and the engine is stopped.
    """
    _Block(job, emit, stopping).run()


def _serves(server: Server) -> bool:
    """Whether a server still serves; one that died after a point is started anew, which no point is charged for."""
    try:
        server.check()
    except MeasurementError:
        return False
    return True


class _StartError(EngineError):
    """An engine could not be started: what its adapter raised, and the engine's last lines."""

    def __init__(self, error: MeasurementError | InputError) -> None:
        MeasurementError.__init__(self, str(error))
        self.last_lines = error.last_lines if isinstance(error, EngineError) else ()


class _Block:
    """A block under way: the points that wait, the first of them being measured, and their failed attempts."""

    def __init__(self, job: Job, emit: Emit, stopping: Stopping) -> None:
        self._job = job
        self._emit = emit
        self._stopping = stopping
        self._engine = open_engine(job.target.engine)
        self._waiting = list(job.points)
        self._tried = dict(job.tried)

    def run(self) -> None:
        while self._goes_on():
            point = self._waiting[0]
            self._emit(PointStarted(point.key, str(point)))
            try:
                self._serve()
            except Stopped:
                self._emit(PointPutBack(self._waiting[0].key, str(self._waiting[0])))
            except MeasurementError as error:
                lines = error.last_lines if isinstance(error, EngineError) else ()
                if not self._again(str(error), lines):
                    failed = list(self._waiting) if isinstance(error, _StartError) else self._waiting[:1]
                    for hopeless in failed:
                        self._close(hopeless, self._failure(hopeless, str(error), lines))

    def _goes_on(self) -> bool:
        """Whether there is a point to begin."""
        return bool(self._waiting) and not self._stopping() and self._job.has_time_for(self._waiting[0])

    def _serve(self) -> None:
        """Start the engine and measure what waits."""
        from qplan.measure.campaign.rig import make_rig

        job = self._job
        server, prepared = self._start()
        try:
            with server, make_rig(job, server, prepared, self._emit, self._stopping) as rig:
                while True:
                    self._measure(self._waiting[0], rig)
                    if not self._goes_on() or not _serves(server):
                        return
                    self._emit(PointStarted(self._waiting[0].key, str(self._waiting[0])))
        finally:
            self._emit(EngineStopped(job.number, str(job.target)))

    def _measure(self, point: Point, rig: Rig) -> None:
        """Measure the first point; what fails while the engine lives is tried again without a new start."""
        from qplan.measure.campaign.measuring import measure_point

        try:
            result = measure_point(point, rig)
        except InputError as error:  # a data set that is not there, say: trying again does not bring it
            self._close(point, self._failure(point, str(error), ()))
            return
        if result.state == "done" or result.final or not self._again(result.reason or result.state, ()):
            self._close(point, result)

    def _start(self) -> tuple[Server, Prepared]:
        """Start the engine; whatever prevents that is a :class:`_StartError`."""
        job = self._job
        serving = job.target.serving(job.devices)
        self._emit(EngineStarting(job.number, str(job.target), job.devices))
        began = time.perf_counter()
        try:
            prepared = self._engine.prepare(serving, Path(job.cache))
            if self._stopping():
                raise Stopped
            folder = Path(job.folder) / f"block-{job.number}"
            server = self._engine.start(serving, prepared, folder, deadline_s=job.deadlines.start_s)
        except (MeasurementError, InputError) as error:
            raise _StartError(error) from None
        self._emit(EngineReady(job.number, str(job.target), server.version, time.perf_counter() - began))
        return server, prepared

    def _again(self, reason: str, lines: tuple[str, ...]) -> bool:
        """Count a failed attempt at the first point, and pause if it may be tried once more."""
        point = self._waiting[0]
        tried = self._tried[point.key] = self._tried.get(point.key, 0) + 1
        if tried > self._job.retries:
            return False
        pause_s = min(FIRST_PAUSE_S * 2 ** (tried - 1), LONGEST_PAUSE_S)
        self._emit(PointRetried(point.key, str(point), reason, lines, pause_s))
        until = time.perf_counter() + pause_s
        while time.perf_counter() < until and not self._stopping():
            time.sleep(0.05)
        return True

    def _close(self, point: Point, result: Result) -> None:
        self._waiting.remove(point)
        self._emit(PointFinished(point.key, str(point), result))

    def _failure(self, point: Point, reason: str, lines: tuple[str, ...]) -> Result:
        """Return the result of a point that could not be measured."""
        from qplan.measure.campaign.rows import failure_row

        try:
            version = self._engine.version()
        except MeasurementError:
            version = "unknown"
        status = "oom" if _OUT_OF_MEMORY.search("\n".join((reason, *lines))) else "failed"
        row = failure_row(point, self._job, version, status, reason)
        return Result("failed", rows=(row,), reason=reason, last_lines=lines)
