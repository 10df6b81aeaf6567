"""Where blocks run: one after the other in this process, or side by side in worker processes on disjoint GPUs.

A worker process is spawned for one block, sends its events through a pipe of its own, and ends by itself when this
process is gone. Its death is an event like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Protocol

from qplan.core.errors import QplanError
from qplan.measure.campaign.block import Job, measure_block
from qplan.measure.campaign.events import BlockEnded, Emit, Event, Stopping

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.synchronize import Event as StopFlag


class Workers(Protocol):
    """Runs jobs; each ends in a :class:`~qplan.measure.campaign.events.BlockEnded`."""

    def room(self, tp: int) -> bool:
        """Whether a job on `tp` GPUs can begin now."""

    def submit(self, job: Job) -> None:
        """Begin a job, choosing its devices."""

    def poll(self, timeout_s: float) -> None:
        """Emit what happened since the last call; wait up to `timeout_s` for something to happen."""

    def close(self) -> None:
        """Let go of every worker; those still at work are ended."""


class InProcess:
    """One job at a time, in this process: :meth:`submit` returns when it is over."""

    def __init__(self, devices: tuple[int, ...], emit: Emit, stopping: Stopping) -> None:
        self._devices = devices
        self._emit = emit
        self._stopping = stopping

    def room(self, tp: int) -> bool:  # noqa: ARG002
        """Return true: nothing runs between two calls."""
        return True

    def submit(self, job: Job) -> None:
        """Measure the job."""
        measure_block(replace(job, devices=self._devices[: job.target.tp]), self._emit, self._stopping)
        self._emit(BlockEnded(job.number))

    def poll(self, timeout_s: float) -> None:
        """Do nothing: every event has been emitted."""

    def close(self) -> None:
        """Do nothing."""


class SideBySide:
    """Jobs in processes of their own, each on GPUs that no other uses."""

    def __init__(self, devices: Sequence[int], emit: Emit, stopping: Stopping) -> None:
        self._free = list(devices)
        self._emit = emit
        self._stopping = stopping
        self._context = multiprocessing.get_context("spawn")
        self._stop: StopFlag = self._context.Event()
        self._workers: dict[Connection, tuple[Job, SpawnProcess]] = {}

    def room(self, tp: int) -> bool:
        """Whether so many GPUs are free."""
        return len(self._free) >= tp

    def submit(self, job: Job) -> None:
        """Spawn a process for the job."""
        taken, self._free = tuple(self._free[: job.target.tp]), self._free[job.target.tp :]
        job = replace(job, devices=taken)
        ours, theirs = self._context.Pipe()
        worker = self._context.Process(target=_work, args=(job, theirs, self._stop), name=f"qplan-block-{job.number}")
        worker.start()
        theirs.close()
        self._workers[ours] = (job, worker)

    def poll(self, timeout_s: float) -> None:
        """Emit the events that came in."""
        if self._stopping():
            self._stop.set()
        for connection in wait(list(self._workers), timeout_s):
            assert isinstance(connection, Connection)
            try:
                event: Event = connection.recv()
            except (EOFError, OSError):
                event = BlockEnded(self._workers[connection][0].number, error="")
            if isinstance(event, BlockEnded):
                event = self._reap(connection, event)
            self._emit(event)

    def close(self) -> None:
        """End what is still at work; closing the pipes ends the workers, and they their engines."""
        self._stop.set()
        for connection, (_, worker) in self._workers.items():
            connection.close()
            worker.join(timeout=30)
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._workers.clear()

    def _reap(self, connection: Connection, event: BlockEnded) -> BlockEnded:
        job, worker = self._workers.pop(connection)
        connection.close()
        worker.join()
        self._free = sorted((*self._free, *job.devices))
        if event.error != "":
            return event
        code = worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return replace(event, error=f"the measuring process {how}")


def _work(job: Job, connection: Connection, stop: StopFlag) -> None:
    """Measure a job in a spawned process, for as long as the process that asked for it lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent says when to stop
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    error = None
    try:
        measure_block(job, connection.send, stop.is_set)
    except QplanError as problem:
        error = str(problem)
    connection.send(BlockEnded(job.number, error))


def _die_with(connection: Connection) -> None:
    """End this process when the other end of the pipe is closed: nobody is there to take results."""
    try:
        connection.recv()
    except (EOFError, OSError):
        sys.stderr.flush()
        os._exit(1)
