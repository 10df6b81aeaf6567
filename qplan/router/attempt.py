"""One request at one replica, up to the point from which it belongs to the client.

Until the first event of a stream is whole, or the whole of an answer that is not streamed has come, nothing was sent to
the client, and whatever goes wrong the request can go to another replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from qplan.measure.load.http1 import HttpError
from qplan.router.events import StreamError, read_usage
from qplan.router.replicas import Flight
from qplan.router.settings import Limits
from qplan.router.upstream import ConnectError

_BUSY = frozenset({429, 503})
_FAILED = frozenset({500, 502, 504})
_MOST_HELD_BYTES = 2**20
_MOST_REFUSAL_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Reply:
    """What a replica answered.

    Attributes
    ----------
    body
        The whole of it, or of one that `goes_on` its beginning.
    """

    status: int
    fields: Mapping[str, str]
    body: bytes
    goes_on: bool = False


class AttemptError(Exception):
    """A replica did not answer, or not with an answer.

    Parameters
    ----------
    reason
        What happened, in a few words.
    unseen
        The replica never saw the request.
    blamed
        It was the replica's doing; one that is merely busy is not to blame.
    reply
        What it answered instead, to be passed on where no other replica can be asked.
    """

    def __init__(self, reason: str, *, unseen: bool = False, blamed: bool = True, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reason, self.unseen, self.blamed, self.reply = reason, unseen, blamed, reply


async def attempt(flight: Flight, limits: Limits) -> Reply:
    """Send a request to its replica and wait for what can be passed on.

    How long that may last is watched by :func:`qplan.router.health.sweep`.

    Raises
    ------
    AttemptError
        Nothing can.
    """
    ask, replica = flight.ask, flight.replica
    body = ask.for_model(replica.address.model) if replica.address.model else ask.body
    try:
        await replica.upstream.post(
            ask.path, body, flight, stream=ask.stream, connect_s=limits.connect, fields=flight.fields
        )
        return await _answer(flight)
    except ConnectError as error:
        raise AttemptError(str(error), unseen=True) from None
    except (HttpError, OSError, StreamError) as error:
        raise AttemptError(str(error) or type(error).__name__) from None


async def _answer(flight: Flight) -> Reply:
    connection = flight.connection
    assert connection is not None
    status, fields = connection.status, connection.fields
    if status != 200:
        refusal = Reply(status, fields, await _whole(flight, _MOST_REFUSAL_BYTES))
        if status in _BUSY:
            raise AttemptError(f"status {status}", blamed=False, reply=refusal)
        if status in _FAILED:
            raise AttemptError(f"status {status}", reply=refusal)
        return refusal
    if flight.ask.stream and fields.get("content-type", "").startswith("text/event-stream"):
        return Reply(status, fields, await _first_event(flight), goes_on=True)
    body = await _whole(flight, _MOST_HELD_BYTES)
    if len(body) > _MOST_HELD_BYTES:
        return Reply(status, fields, body, goes_on=True)
    _check_document(flight, body)
    return Reply(status, fields, body)


async def _first_event(flight: Flight) -> bytes:
    """Return the stream up to its first event with data; comments before it are held back with it."""
    connection, events = flight.connection, flight.events
    assert connection is not None
    first = b""
    while not events.count and not events.done:
        if events.broken is not None:
            raise events.broken
        data = await connection.read()
        if not data:
            raise StreamError("ended before its first event")
        first += events.feed(data)
        if len(first) > _MOST_HELD_BYTES and not events.count:
            raise StreamError("no event with data")
    if events.error:
        raise StreamError(events.error)
    return first


async def _whole(flight: Flight, most_bytes: int) -> bytes:
    """Return the body, or its beginning where that is longer than `most_bytes`."""
    connection = flight.connection
    assert connection is not None
    pieces, size = [], 0
    while data := await connection.read():
        pieces.append(data)
        size += len(data)
        if size > most_bytes:
            break
    return b"".join(pieces)


def _check_document(flight: Flight, body: bytes) -> None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise StreamError("an answer that is not JSON") from None
    if not isinstance(document, dict):
        raise StreamError("an answer that is no JSON object")
    if "error" in document and "choices" not in document:
        raise StreamError("status 200 with an error")
    events = flight.events
    events.prompt_tokens, events.completion_tokens = read_usage(body)
