"""The connections to one replica: kept for the next request, made anew where they broke."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from qplan.measure.load.http1 import HttpError
from qplan.router.connection import Connection

if TYPE_CHECKING:
    import ssl

# Servers on uvicorn drop an idle connection after 5 s; one that is about to be dropped is not worth reusing.
_IDLE_S = 4.0
_MOST_IDLE = 256


class Holder(Protocol):
    """Whoever holds a connection while it is used."""

    connection: Connection | None


class _Asking:
    connection: Connection | None = None


class Upstream:
    """The connections to one replica.

    Parameters
    ----------
    url
        Base address without ``/v1``.
    api_key
        Bearer token; never printed.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._prefix = parts.hostname or "", parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = _tls_context() if parts.scheme == "https" else None
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._fields = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}"
        self._idle: list[Connection] = []
        self._heads: dict[tuple[str, bool], bytes] = {}

    async def post(
        self, path: str, body: bytes, holder: Holder, *, stream: bool, connect_s: float, fields: bytes = b""
    ) -> Connection:
        """Post JSON; return the connection once the head of its reply is read.

        Parameters
        ----------
        holder
            Holds the connection from before the request is sent, and gives it to :meth:`release` in any case.
        fields
            More header fields, each with its line end.

        Raises
        ------
        ConnectError
            There is no connection: the replica saw nothing of the request.
        HttpError, OSError
            It broke afterwards.
        """
        head = self._heads.get((path, stream))
        if head is None:
            kind = "text/event-stream" if stream else "application/json"
            head = self._heads[path, stream] = (
                f"POST {self._prefix}{path}{self._fields}Accept: {kind}\r\n"
                "Content-Type: application/json\r\nContent-Length: "
            ).encode("latin-1")
        return await self._ask(b"%b%d\r\n%b\r\n%b" % (head, len(body), fields, body), holder, connect_s)

    async def get(self, path: str, *, timeout_s: float, most_bytes: int = 2**22) -> tuple[int, bytes]:
        """Get a whole answer of at most `most_bytes`; return its status and body.

        Raises
        ------
        HttpError, OSError, TimeoutError
            There is none, or none in time.
        """
        return await self._whole(f"GET {self._prefix}{path}{self._fields}Accept: */*\r\n\r\n", timeout_s, most_bytes)

    async def order(self, path: str, *, timeout_s: float) -> int:
        """Post nothing but the address; return the status of the answer.

        Raises
        ------
        HttpError, OSError, TimeoutError
            There is none, or none in time.
        """
        request = f"POST {self._prefix}{path}{self._fields}Accept: */*\r\nContent-Length: 0\r\n\r\n"
        return (await self._whole(request, timeout_s, 2**16))[0]

    async def _whole(self, request: str, timeout_s: float, most_bytes: int) -> tuple[int, bytes]:
        holder = _Asking()
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._ask(request.encode("latin-1"), holder, timeout_s)
                body = b""
                while data := await connection.read():
                    body += data
                    if len(body) > most_bytes:
                        raise HttpError(f"an answer of more than {most_bytes} bytes")
        finally:
            if holder.connection is not None:
                self.release(holder.connection)
        return connection.status, body

    def release(self, connection: Connection) -> None:
        """Take back a connection; closes it, and so ends its request at the replica, where that is not over."""
        if connection.usable and len(self._idle) < _MOST_IDLE:
            connection.idle_since_s = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle:
            self._idle.pop().close()

    async def _ask(self, request: bytes, holder: Holder, connect_s: float) -> Connection:
        connection = self._kept()
        if connection is not None:
            holder.connection = connection
            try:
                await connection.send(request)
            except (HttpError, ConnectionError):
                if connection.status or connection.given_up:
                    raise
                # A kept connection that the replica dropped just before; it never read the request.
            else:
                return connection
        holder.connection = connection = await self._connect(connect_s)
        await connection.send(request)
        return connection

    def _kept(self) -> Connection | None:
        oldest_s = time.monotonic() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s > oldest_s:
                connection.idle_since_s = 0.0
                return connection
            connection.close()
        return None

    async def _connect(self, connect_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await loop.create_connection(
                    Connection, self._host, self._port, ssl=self._tls, server_hostname=self._host if self._tls else None
                )
        except TimeoutError:
            raise ConnectError(f"no connection in {connect_s:g} s") from None
        except OSError as error:
            raise ConnectError(f"cannot connect: {error.strerror or error}") from None
        return connection


class ConnectError(HttpError):
    """The replica could not be reached: it saw nothing of the request."""


def _tls_context() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()
