"""One schedule sent by several processes.

Each worker (:mod:`qplan.measure.load.worker`) is a fresh interpreter that talks over its standard streams::

    parent                                worker k of n
      job: endpoint, schedule, prompts ──►
                                       ◄── ready
      origin on the shared clock       ──►
                                       ◄── finished request, each (only where somebody observes)
      stop                             ──► cancels what is in flight
                                       ◄── its share of the record

A worker whose input ends has lost its parent, however that died, and exits at once.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.encoding import decode_requests
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import Floats, Outcome, Request, Requests

if TYPE_CHECKING:
    from qplan.measure.load.run import Observer

HEAD = struct.Struct("!cI")
JOB, ORIGIN, STOP = b"J", b"O", b"S"
READY, FINISHED, RECORD, FAILURE = b"R", b"F", b"D", b"E"

_POLL_S = 0.02
_LEAD_S = 0.2


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return one message: kind, length, payload."""
    return HEAD.pack(kind, len(payload)) + payload


def pack_request(request: Request) -> bytes:
    """Encode one finished request for :func:`unpack_request`."""
    fields = [getattr(request, name) for name in Request.__slots__]
    return orjson.dumps(fields)


def unpack_request(payload: bytes) -> Request:
    """Decode what :func:`pack_request` encoded."""
    fields = dict(zip(Request.__slots__, orjson.loads(payload), strict=True))
    fields |= {"chunk_s": tuple(fields["chunk_s"]), "outcome": Outcome(fields["outcome"])}
    return Request(**fields)


def pack_job(
    endpoint: Endpoint,
    schedule_s: Floats,
    prompts: Sequence[Prompt],
    timeout_s: float,
    shard: tuple[int, int],
    observed: bool,
) -> bytes:
    """Encode what a worker has to do."""
    return orjson.dumps(
        {
            "endpoint": [endpoint.url, endpoint.model, endpoint.api, endpoint.api_key],
            "schedule_s": schedule_s.tolist(),
            "prompts": [[prompt.content, prompt.input_tokens, prompt.output_tokens] for prompt in prompts],
            "timeout_s": timeout_s,
            "shard": shard,
            "observed": observed,
        }
    )


def unpack_job(payload: bytes) -> dict[str, Any]:
    """Decode a job into the keyword arguments of :func:`qplan.measure.load.run.offer`, and ``observed``."""
    job: dict[str, Any] = orjson.loads(payload)
    job["endpoint"] = Endpoint(*job["endpoint"])
    job["prompts"] = [
        Prompt(tuple(content) if isinstance(content, list) else content, *tokens) for content, *tokens in job["prompts"]
    ]
    job["shard"] = tuple(job["shard"])
    return job


async def offer_from_processes(
    endpoint: Endpoint,
    schedule_s: Floats,
    prompts: Sequence[Prompt],
    timeout_s: float,
    processes: int,
    observer: Observer | None,
) -> Requests:
    """Send the schedule from several processes; see :func:`qplan.measure.load.run.run_load`."""
    workers: list[asyncio.subprocess.Process] = []
    records: list[asyncio.Task[Requests]] = []
    try:
        for shard in range(processes):
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "qplan.measure.load.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent, whose end ends them
            )
            workers.append(worker)
            job = pack_job(endpoint, schedule_s, prompts, timeout_s, (shard, processes), observer is not None)
            _tell(worker, JOB, job)
        for worker in workers:
            await _hear(worker)
        origin = struct.pack("!d", time.perf_counter() + _LEAD_S)
        for worker in workers:
            _tell(worker, ORIGIN, origin)
        records += [asyncio.create_task(_follow(worker, observer)) for worker in workers]
        stopped = False
        while not all(record.done() for record in records):
            await asyncio.wait(records, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION)
            if any(record.done() and record.exception() for record in records):
                break
            if observer is not None and not stopped and observer.stop():
                stopped = True
                for worker in workers:
                    _tell(worker, STOP)
        for record in records:
            if record.done():
                record.result()
        return Requests.merge([await record for record in records])
    finally:
        for record in records:
            record.cancel()
        await asyncio.gather(*records, return_exceptions=True)
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


async def _follow(worker: asyncio.subprocess.Process, observer: Observer | None) -> Requests:
    while True:
        kind, payload = await _hear(worker)
        if kind == RECORD:
            return decode_requests(payload)
        if observer is not None:
            observer.finished(unpack_request(payload))


async def _hear(worker: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    assert worker.stdout is not None
    try:
        kind, length = HEAD.unpack(await worker.stdout.readexactly(HEAD.size))
        payload = await worker.stdout.readexactly(length)
    except asyncio.IncompleteReadError:
        raise MeasurementError(f"a load process died with status {await worker.wait()}") from None
    if kind == FAILURE:
        raise MeasurementError(f"a load process failed: {payload.decode()}")
    return kind, payload


def _tell(worker: asyncio.subprocess.Process, kind: bytes, payload: bytes = b"") -> None:
    assert worker.stdin is not None
    worker.stdin.write(frame(kind, payload))
