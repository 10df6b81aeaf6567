"""One connection to a replica: a request goes out, its reply comes back piece by piece, the moment it arrives.

The bytes of a stream are read without parser, buffer and task of a general HTTP library between socket and reader; what
a slow client leaves unread pauses the replica's socket instead of filling memory. The format is read by
:class:`qplan.measure.load.http1.Reply`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from qplan.measure.load.http1 import HttpError, Reply

_HIGH_WATER_BYTES = 2**18


class Connection(asyncio.Protocol):
    """One connection to a replica; carries one request at a time.

    Attributes
    ----------
    idle_since_s
        When its last request ended, on :func:`time.monotonic`; 0 while it is used.
    given_up
        It was this side that broke it off.
    """

    __slots__ = (
        "_failure", "_lost", "_paused", "_pieces", "_reply", "_sink", "_size", "_transport", "_waiter",
        "given_up", "idle_since_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self.given_up = False
        self._transport: asyncio.Transport
        self._reply = Reply()
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = self._lost = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    @property
    def status(self) -> int:
        """Status of the reply."""
        return self._reply.status

    @property
    def fields(self) -> Mapping[str, str]:
        """Header fields of the reply, names in lower case."""
        return self._reply.fields

    @property
    def complete(self) -> bool:
        """Whether the whole reply has come, if not all of it was read yet."""
        return self._reply.complete

    @property
    def usable(self) -> bool:
        """Whether another request can be sent: the last one is over, and the connection stayed."""
        reply = self._reply
        return not self._lost and not self._transport.is_closing() and (not reply.status or reply.complete & reply.keep)

    async def send(self, request: bytes) -> None:
        """Send a request and wait for the head of its reply.

        Raises
        ------
        HttpError, OSError
            The connection broke, or what came is not HTTP.
        """
        self._reply, self._failure = Reply(), None
        self._pieces.clear()
        self._size = 0
        self._resume()
        self._transport.write(request)
        while not self._reply.status:
            await self._more()

    async def read(self) -> bytes:
        """Return the body's next bytes, as soon as there are any; ``b""`` at its end.

        Raises
        ------
        HttpError, OSError
            The connection broke before the end, or what came is not HTTP.
        """
        while not self._pieces:
            if self._reply.complete:
                return b""
            await self._more()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._resume()
        return data

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Give the rest of the body to `sink`, each piece where the socket is read, without a task in between.

        Returns
        -------
        bool
            Whether the body is over; false where `sink` returned false, which stops the flow: pour again to go on.

        Raises
        ------
        HttpError, OSError
            As :meth:`read`; also what `sink` raises.
        """
        while self._pieces:
            if not sink(await self.read()):
                return False
        self._sink = sink
        self._resume()
        try:
            while not self._reply.complete:
                if self._paused:
                    return False
                await self._more()
        finally:
            self._sink = None
        if self._failure is not None:  # of the sink, with the last bytes
            raise self._failure
        return True

    def close(self) -> None:
        """Close the connection at once: the replica sees its client go, and stops."""
        self._transport.abort()

    def fail(self, error: HttpError) -> None:
        """Break the connection off from here; whoever reads from it gets the error."""
        self.given_up = True
        self._failure = error
        self._transport.abort()
        self._wake()

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _pause(self) -> None:
        if not self._paused and not self._lost:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._lost:
            self._paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.idle_since_s:  # nothing was asked
            self._transport.abort()
            return
        try:
            body = self._reply.feed(data)
            if self._sink is not None and body:
                if not self._sink(body):
                    self._pause()
                elif not self._reply.complete:
                    return
                body = b""
        except Exception as error:
            self._failure = error
            self._transport.abort()
            self._wake()
            return
        if body:
            self._pieces.append(body)
            self._size += len(body)
            if self._size > _HIGH_WATER_BYTES:
                self._pause()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """End, and with it the request that was under way."""
        self._lost = True
        if self._failure is None:
            try:
                self._reply.end()
            except HttpError as early:
                self._failure = error or early
        self._wake()
