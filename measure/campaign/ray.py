"""Blocks as tasks of a Ray cluster: each on a node with as many free GPUs as its tensor parallelism.

A task streams its events back to the driver, which stays the only writer. Weights that a plan names by path must be
at that path on every node; quantized ones are made in each node's own cache.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from qplan.core.errors import MeasurementError, QplanError
from qplan.core.gpu import Gpu
from qplan.measure.campaign.block import Job, measure_block
from qplan.measure.campaign.events import BlockEnded, Emit, Event, Stopping

T = TypeVar("T")

_STOP_LIMIT_S = 60.0  # of an engine that is told to end


class OnRay:
    """Jobs as Ray tasks; see :class:`~qplan.measure.campaign.placement.Workers`.

    Parameters
    ----------
    address
        Address of the cluster, ``auto``, or ``local`` for one on this machine; the address of a driver that is
        connected already is not needed.
    """

    def __init__(self, address: str, emit: Emit, stopping: Stopping) -> None:
        self._ray = connect(address)
        self._emit = emit
        self._stopping = stopping
        self._cancelled = False
        self._streams: dict[Any, Job] = {}

    def room(self, tp: int) -> bool:  # noqa: ARG002
        """Whether to hand over a job now: Ray queues those for GPUs; CPU engines go one at a time."""
        return all(not Gpu.named(job.target.gpu).is_cpu for job in self._streams.values())

    def submit(self, job: Job) -> None:
        """Send the job to the cluster."""
        gpus = 0 if Gpu.named(job.target.gpu).is_cpu else job.target.tp
        task = self._ray.remote(_work).options(num_gpus=gpus, max_retries=0, num_returns="streaming")
        self._streams[task.remote(job)] = job

    def poll(self, timeout_s: float) -> None:
        """Emit the events that came in."""
        if self._stopping() and not self._cancelled:
            self._cancelled = True
            for stream in self._streams:
                self._ray.cancel(stream)
        ready, _ = self._ray.wait(list(self._streams), timeout=timeout_s, fetch_local=False)
        for stream in ready:
            event = self._next(stream)
            if isinstance(event, BlockEnded):
                self._streams.pop(stream)
            self._emit(event)

    def close(self) -> None:
        """Cancel what is still at work."""
        for stream in self._streams:
            self._ray.cancel(stream)
        self._streams.clear()

    def _next(self, stream: Any) -> Event:
        """Return the next event of a task; its death is the end of the block."""
        number = self._streams[stream].number
        try:
            event: Event = self._ray.get(next(stream))
        except StopIteration:
            return BlockEnded(number, "the Ray task ended without a result")
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, self._ray.exceptions.TaskCancelledError):
                return BlockEnded(number, "the Ray task was cancelled")
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            return BlockEnded(number, f"the Ray worker died: {str(error).splitlines()[0]}")
        return event


def connect(address: str) -> Any:
    """Return Ray, connected to the cluster at `address`.

    Raises
    ------
    MeasurementError
        Ray is not installed, or no cluster answers there.
    """
    try:
        import ray
    except ImportError:
        raise MeasurementError("--ray needs Ray: pip install 'qplan[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, logging_level="error", include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise MeasurementError(f"--ray: no cluster answers at '{address}': {text}") from None
    return ray


def streamed(run: Callable[[Callable[[T], None], Stopping], None]) -> Iterator[T]:
    """Yield what `run` tells, from a Ray task; when Ray cancels the task, `run` is asked to stop and waited for.

    Parameters
    ----------
    run
        Works in a thread of its own; it is given whom to tell, and what says that it is to stop.
    """
    told: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run(told.put, stop.is_set)
        except BaseException as error:
            failed.append(error)
        finally:
            told.put(None)

    worker = threading.Thread(target=work, name="qplan-ray")
    worker.start()
    try:
        while (event := told.get()) is not None:
            yield event
    finally:
        stop.set()  # also when Ray cancels the task: the engine is to be stopped before it ends
        worker.join(_STOP_LIMIT_S)
    if failed:
        raise failed[0]


def _work(job: Job) -> Iterator[Event]:
    """Measure a job where Ray put it, yielding its events."""
    import ray

    job = replace(job, devices=tuple(int(device) for device in ray.get_gpu_ids()))

    def measure(emit: Emit, stopping: Stopping) -> None:
        error = None
        try:
            measure_block(job, emit, stopping)
        except QplanError as problem:
            error = str(problem)
        except BaseException as problem:
            error = repr(problem)
            raise
        finally:
            emit(BlockEnded(job.number, error))

    yield from streamed(measure)
