"""HTTP/1.1 as a load client needs it: one request on a connection, its body read the moment it arrives.

A general HTTP library hands a streamed body from parser to buffer to task before anyone can look at the clock; at
hundreds of streams that costs more than all the rest, and the delay counts as the server's. Here the time is taken
where the socket was read, and bytes go straight to whom they are for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

_LONGEST_HEAD = 2**16
_LONGEST_CHUNK_LINE = 2**10
_KEPT_BODY = 2**13


class HttpError(Exception):
    """What came back is not HTTP, or ended too soon; says so in a few words."""


class Reply:
    """Parser of one response.

    Attributes
    ----------
    status
        0 until the head was read.
    complete
        The whole body was read.
    keep
        The connection may serve another request afterwards.
    fields
        Header fields by their names in lower case.
    """

    __slots__ = ("_buffer", "_chunked", "_left", "_until_close", "complete", "fields", "keep", "status")

    def __init__(self) -> None:
        self.status = 0
        self.complete = self.keep = False
        self.fields: dict[str, str] = {}
        self._buffer = b""
        self._chunked = self._until_close = False
        self._left = 0  # bytes of the body or chunk still to come; of a chunk with the line end after it

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those of the body among them."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if not self.status:
            data = self._head(data)
            if not self.status:
                return b""
        if self._chunked:
            return self._chunks(data)
        if not self._until_close:
            data = data[: self._left]
            self._left -= len(data)
            self.complete = self._left == 0
        return data

    def end(self) -> None:
        """Take the end of the connection."""
        if self._until_close:
            self.complete = True
        elif not self.status:
            raise HttpError("the server closed the connection without an answer")
        elif not self.complete:
            raise HttpError("the server closed the connection in mid-answer")

    def _head(self, data: bytes) -> bytes:
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not data.startswith(b"HTTP/1."[: len(data)]) or len(head) > _LONGEST_HEAD:
            raise HttpError(f"not an HTTP answer: {data[:40]!r}")
        if not blank:
            self._buffer = data
            return b""
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(maxsplit=2)
        if len(words) < 2 or not words[1].isdecimal():
            raise HttpError(f"not an HTTP answer: {first[:40]!r}")
        if words[1].startswith("1"):  # 100 Continue and its like: the answer is yet to come
            return self._head(rest) if rest else b""
        fields = {name.strip().casefold(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.fields = fields
        self.status = int(words[1])
        self._chunked = fields.get("transfer-encoding", "").casefold().endswith("chunked")
        length = fields.get("content-length", "")
        self._until_close = not self._chunked and not length.isdecimal()
        if not self._chunked and not self._until_close:
            self._left = int(length)
            self.complete = self._left == 0
        persistent = words[0] == "HTTP/1.1" and fields.get("connection", "").casefold() != "close"
        self.keep = persistent and not self._until_close
        return rest

    def _chunks(self, data: bytes) -> bytes:
        body, at, end = b"", 0, len(data)
        while at < end and not self.complete:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                body = body + piece if body else piece
                at += len(piece)
                self._left -= len(piece)
            elif self._left:
                skipped = min(self._left, end - at)
                at += skipped
                self._left -= skipped
            else:
                line = data.find(b"\r\n", at)
                if line < 0:
                    if end - at > _LONGEST_CHUNK_LINE:
                        raise HttpError("chunk without a length")
                    self._buffer = data[at:]
                    break
                size = self._size(data[at:line])
                if size:
                    at = line + 2
                    self._left = size + 2
                elif data.find(b"\r\n\r\n", line) >= 0:  # the last chunk and its trailer, mostly empty
                    self.complete = True
                else:
                    self._buffer = data[at:]
                    break
        return body

    @staticmethod
    def _size(line: bytes) -> int:
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise HttpError(f"not the length of a chunk: {line[:40]!r}") from None


class Connection(asyncio.Protocol):
    """One connection to a server, a member of `connections` while it is open; carries one request at a time."""

    def __init__(self, connections: set[Connection]) -> None:
        self._connections = connections
        self.idle_since_s = 0.0
        self.used_before = False
        self._transport: asyncio.Transport
        self._reply = Reply()
        self._take: Callable[[bytes, float], None] | None = None
        self._over: asyncio.Future[bytes] | None = None
        self._refusal = b""

    @property
    def status(self) -> int:
        """Status of the reply; 0 until it came."""
        return self._reply.status

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return not self._transport.is_closing()

    async def ask(self, request: bytes, take: Callable[[bytes, float], None]) -> bytes:
        """Send `request` and wait for the end of its reply.

        The body of a reply with status 200 goes to `take`, with the time on :func:`time.perf_counter` at which it
        arrived; the beginning of any other is returned. What `take` raises ends the request and is raised here.

        Raises
        ------
        HttpError, OSError
            The connection broke, or what came is not HTTP.
        """
        self.used_before = self.idle_since_s > 0
        self._reply, self._take, self._refusal = Reply(), take, b""
        self._over = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._over
        finally:
            self._over, self.idle_since_s = None, time.perf_counter()
            if not (self._reply.complete and self._reply.keep):
                self._transport.abort()

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Take the time, then the bytes."""
        now_s = time.perf_counter()
        over, reply = self._over, self._reply
        if over is None or over.done():
            self._transport.abort()  # nothing was asked
            return
        try:
            body = reply.feed(data)
            if body:
                if reply.status == 200 and self._take is not None:
                    self._take(body, now_s)
                elif len(self._refusal) < _KEPT_BODY:
                    self._refusal += body
        except Exception as error:
            over.set_exception(error)
            return
        if reply.complete:
            over.set_result(self._refusal)

    def connection_lost(self, error: Exception | None) -> None:
        """End, and with it the request that was under way."""
        self._connections.discard(self)
        over = self._over
        if over is None or over.done():
            return
        try:
            self._reply.end()
        except HttpError as early:
            over.set_exception(error or early)
            return
        over.set_result(self._refusal)
