"""The process that sends one share of a schedule: ``python -m qplan.measure.load.worker``, started by its parent.

What it says and hears is drawn in :mod:`qplan.measure.load.processes`.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys

import uvloop

from qplan.measure.load.encoding import encode_requests
from qplan.measure.load.processes import (
    FAILURE,
    FINISHED,
    HEAD,
    READY,
    RECORD,
    STOP,
    frame,
    pack_request,
    unpack_job,
)
from qplan.measure.load.requests import Request
from qplan.measure.load.run import offer


class Parent:
    """The observer on the other side of the pipe."""

    def __init__(self) -> None:
        self._stopped = False

    def finished(self, request: Request) -> None:
        """Send the request to the parent."""
        say(FINISHED, pack_request(request))

    def stop(self) -> bool:
        """Say whether the parent said so."""
        return self._stopped

    def watch(self) -> None:
        """Read what the parent says from now on; without a parent there is nothing left to do."""
        if os.read(0, 1 << 16)[:1] != STOP:
            os._exit(1)
        self._stopped = True


def say(kind: bytes, payload: bytes = b"") -> None:
    """Write one message to the parent."""
    sys.stdout.buffer.write(frame(kind, payload))
    sys.stdout.buffer.flush()


def hear() -> bytes:
    """Read one message of the parent; exit where there is none."""
    head = _read(HEAD.size)
    return _read(HEAD.unpack(head)[1])


def _read(count: int) -> bytes:
    # Unbuffered, so that what comes later is left to the event loop's reader.
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            os._exit(1)
        data += more
    return data


async def work() -> None:
    """Do the job that the parent sends."""
    job = unpack_job(hear())
    observed = job.pop("observed")
    say(READY)
    (origin_s,) = struct.unpack("!d", hear())
    parent = Parent()
    asyncio.get_running_loop().add_reader(0, parent.watch)
    requests = await offer(**job, origin_s=origin_s, observer=parent if observed else None)
    say(RECORD, encode_requests(requests))


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())
    except Exception as error:
        say(FAILURE, f"{type(error).__name__}: {error}".encode())
        sys.exit(1)
