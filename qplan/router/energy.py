"""What the replicas' GPUs really take, where they are this machine's: observed beside what the policy predicts."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from urllib.parse import urlsplit

from qplan.core.errors import MeasurementError
from qplan.measure.energy.nvml import NvmlMeter
from qplan.measure.energy.timeline import Sample
from qplan.router.dispatch import Dispatcher
from qplan.router.logs import Log
from qplan.router.metrics import ENERGY, POWER, Metrics
from qplan.router.replicas import Replica

_PERIOD_S = 1.0


class GpuCounter(NvmlMeter):
    """Energy of some GPUs from one reading to the next: read when asked, without the meter's thread."""

    def open(self) -> None:
        """Begin.

        Raises
        ------
        MeasurementError
            The GPUs are not there, or one of them tells no energy.
        """
        found = self._open()
        self.names = tuple(name for name, _ in found)
        self._last = self._samples_now()
        for (name, note), sample in zip(found, self._last, strict=True):
            if sample.counter_j is None and sample.power_w is None:
                self._close()
                raise MeasurementError(f"NVML: {name}: {note}")

    def close(self) -> None:
        """End."""
        self._close()

    def read(self) -> tuple[float, float | None]:
        """Return joules since the last reading, and watts now; the latter is ``None`` where a GPU does not tell them.

        Raises
        ------
        MeasurementError
            A GPU cannot be read any more.
        """
        before, self._last = self._last, self._samples_now()
        powers = [sample.power_w for sample in self._last if sample.power_w is not None]
        joules = sum(map(_between, before, self._last))
        return joules, sum(powers) if len(powers) == len(self._last) else None

    def _samples_now(self) -> list[Sample]:
        return [self._read(device) for device in range(len(self._gpus))]


def _between(before: Sample, now: Sample) -> float:
    """Return joules between two readings: by the counter, else by the trapezoid of the power."""
    if before.counter_j is not None and now.counter_j is not None:
        return max(0.0, now.counter_j - before.counter_j)  # it begins anew with the driver
    return 0.5 * ((before.power_w or 0.0) + (now.power_w or 0.0)) * (now.time_s - before.time_s)


async def observe(dispatcher: Dispatcher, metrics: Metrics, log: Log) -> None:
    """Count what the replicas take whose GPUs the router's file names, every second.

    Where a replica runs on another machine, NVML is missing, or two replicas share a GPU, there are no such series, and
    the log says why in one line.
    """
    named: dict[Replica, tuple[str, ...]] = {}
    counters: dict[Replica, GpuCounter] = {}
    while True:
        before, named = named, {one: one.address.gpus for one in dispatcher.replicas if one.address.gpus}
        if named != before:
            for counter in counters.values():
                counter.close()
            counters = await asyncio.to_thread(_opened, named, log)
            for replica in before.keys() - counters.keys():
                _forget(replica, metrics)
        for replica, counter in list(counters.items()):
            labels = {"replica": replica.name, "group": replica.address.group}
            try:
                joules, watts = await asyncio.to_thread(counter.read)
            except MeasurementError as error:
                log.write("energy", replica=replica.name, reason=str(error))
                counters.pop(replica).close()
                _forget(replica, metrics)
                continue
            metrics.add(ENERGY, joules, **labels)
            if watts is not None:
                metrics.set(POWER, watts, **labels)
        await asyncio.sleep(_PERIOD_S)


def _forget(replica: Replica, metrics: Metrics) -> None:
    for family in (ENERGY, POWER):
        metrics.drop(family, replica=replica.name)


def _opened(named: dict[Replica, tuple[str, ...]], log: Log) -> dict[Replica, GpuCounter]:
    """Return a counter for each replica whose GPUs can be read, and are its own."""
    found: dict[Replica, GpuCounter] = {}
    for replica, gpus in named.items():
        host = urlsplit(replica.address.url).hostname or ""
        if not _is_here(host):
            log.write("energy", replica=replica.name, reason=f"{host} is another machine: its GPUs cannot be read here")
            continue
        counter = GpuCounter(gpus)
        try:
            counter.open()
        except MeasurementError as error:
            log.write("energy", replica=replica.name, reason=str(error))
        else:
            found[replica] = counter
    users = Counter(name for counter in found.values() for name in counter.names)
    for replica, counter in list(found.items()):
        if shared := [name for name in counter.names if users[name] > 1]:
            log.write("energy", replica=replica.name, reason=f"{shared[0]} is another replica's, too")
            found.pop(replica).close()
    return found


def _is_here(host: str) -> bool:
    """Whether an address is this machine's: only then can a socket be bound to it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
