"""Workers of a study as tasks of a Ray cluster, each with as many GPUs as the widest configuration takes.

What they tell and observe is streamed back to the driver, which alone writes the store; the study itself they share
through its storage, whose URL every node must reach. A worker that dies is replaced, and what it held is measured again
by whoever finds it dead (:mod:`qplan.solvers.tuning.turns`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qplan.core.errors import MeasurementError
from qplan.measure.campaign.ray import connect, streamed
from qplan.solvers.tuning.engines import EngineMeasure, Keep
from qplan.solvers.tuning.events import Died, Event, Stopped
from qplan.solvers.tuning.measuring import Measure
from qplan.solvers.tuning.objectives import Row
from qplan.solvers.tuning.setup import open_job
from qplan.solvers.tuning.space import Enumerated
from qplan.solvers.tuning.study import storage_at
from qplan.solvers.tuning.tunefile import Tuning
from qplan.solvers.tuning.turns import MOST_TRIES
from qplan.solvers.tuning.worker import INTERRUPTED, work

if TYPE_CHECKING:
    from qplan.solvers.tuning.sampler import FrontSampler

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Assignment:
    """What every worker is given.

    Attributes
    ----------
    storage
        URL of the study's storage, as every node reaches it.
    source
        Name of the table, or that it is measured.
    measure
        ``None``: the engines of the node that the worker is on.
    """

    tuning: Tuning
    storage: str
    source: str
    enumerated: Enumerated
    sampler: FrontSampler
    measure: Measure | None = None

    @property
    def gpus(self) -> int:
        """GPUs of a worker."""
        if self.measure is not None:
            return 0
        return max((one.gpus for one in self.enumerated.configurations if not one.gpu.is_cpu), default=0)


@dataclass(frozen=True, slots=True)
class _Observed:
    """Rows for the store."""

    rows: tuple[Row, ...]


def work_on_ray(
    address: str,
    workers: int | None,
    given: Assignment,
    *,
    emit: Callable[[Event], None],
    keep: Keep,
    stopping: Callable[[], bool],
) -> Stopped:
    """Let workers on a cluster measure until the budget is spent, little is left to gain, or the user asks for an end.

    Parameters
    ----------
    address
        Address of the cluster, ``auto``, or ``local`` for one on this machine.
    workers
        How many; ``None``: as many as the cluster has GPUs for, and one where they need none.
    keep
        Called with what workers observe.

    Raises
    ------
    MeasurementError
        Ray is not installed, no cluster answers, it has too few GPUs, or workers die again and again.
    """
    cluster = _Cluster(connect(address), given)
    wanted = workers or cluster.fitting()
    for _ in range(wanted):
        cluster.start()
    died, cancelled, last = 0, False, Stopped(INTERRUPTED, interrupted=True)
    try:
        while cluster.streams:
            if stopping() and not cancelled:
                cancelled = True
                cluster.cancel()
            for told in cluster.poll():
                match told:
                    case _Observed():
                        keep(told.rows)
                    case Stopped():
                        last = told
                    case Died():
                        died += 1
                        if cancelled:
                            continue
                        if died >= MOST_TRIES * wanted:
                            raise MeasurementError(f"{died} workers have died, the last one so: {told.reason}")
                        emit(told)
                        cluster.start()
                    case _:
                        emit(told)
    finally:
        cluster.cancel()
    emit(last)
    return last


class _Cluster:
    """The tasks that are at work."""

    def __init__(self, ray: Any, given: Assignment) -> None:
        self._ray = ray
        self._given = ray.put(given)
        self._gpus = given.gpus
        self._task = ray.remote(_work).options(
            num_gpus=given.gpus, max_retries=0, num_returns="streaming", scheduling_strategy="SPREAD"
        )
        self.streams: list[Any] = []

    def fitting(self) -> int:
        """Return how many workers the cluster has GPUs for."""
        if not self._gpus:
            return 1
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        if gpus < self._gpus:
            raise MeasurementError(f"--ray: a worker needs {self._gpus} GPUs; the cluster has {gpus}")
        return gpus // self._gpus

    def start(self) -> None:
        """Start a worker."""
        self.streams.append(self._task.remote(self._given))

    def cancel(self) -> None:
        """Tell all workers to stop."""
        for stream in self.streams:
            self._ray.cancel(stream)

    def poll(self) -> Iterator[Event | _Observed]:
        """Yield what came in."""
        ready, _ = self._ray.wait(self.streams, timeout=_POLL_S, fetch_local=False)
        for stream in ready:
            try:
                yield self._ray.get(next(stream))
            except StopIteration:
                self.streams.remove(stream)
            except self._ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, self._ray.exceptions.TaskCancelledError):
                    raise error.cause from None
                self.streams.remove(stream)
            except self._ray.exceptions.RayError as error:
                self.streams.remove(stream)
                yield Died(str(error).splitlines()[0])


def _work(given: Assignment) -> Iterator[Event | _Observed]:
    """Work on the study where Ray put this task, yielding what there is to tell."""
    import optuna
    import ray

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    devices = tuple(int(device) for device in ray.get_gpu_ids())
    tuning = replace(given.tuning, conditions=replace(given.tuning.conditions, devices=devices))

    def run(tell: Callable[[Event | _Observed], None], stopping: Callable[[], bool]) -> None:
        measure = given.measure or EngineMeasure(tuning, lambda rows: tell(_Observed(tuple(rows))))
        with storage_at(given.storage) as storage:
            job = open_job(tuning, storage, given.enumerated, measure, given.source, given.sampler)
            work(job, emit=tell, stopping=stopping)

    yield from streamed(run)
