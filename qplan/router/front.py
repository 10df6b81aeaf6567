"""The side of the clients: aiohttp's HTTP server with bounds on what one client, and all of them, can hold."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from qplan.router.logs import Log
from qplan.router.proxy import Proxy
from qplan.router.settings import Limits

_MOST_FIELDS = 100
_LONGEST_FIELD = 16 * 2**10
_LONGEST_LINE = 8 * 2**10
_LINGER_S = 2.0
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Front(web.Server):
    """An HTTP server for one process.

    A client that goes away cancels its request. A head that does not come in time, and a connection that idles, are
    closed. Connections beyond the limit are refused.

    Attributes
    ----------
    open
        Connections that are open.
    """

    def __init__(self, proxy: Proxy, limits: Limits, log: Log) -> None:
        super().__init__(
            proxy.handle,
            handler_cancellation=True,
            access_log=None,
            logger=_logger(log),
            keepalive_timeout=limits.head,
            lingering_time=_LINGER_S,
            max_headers=_MOST_FIELDS,
            max_field_size=_LONGEST_FIELD,
            max_line_size=_LONGEST_LINE,
            auto_decompress=False,
        )
        self.open = 0
        self._most = limits.connections

    def __call__(self) -> Any:
        """Return the protocol for a connection that has come in."""
        return super().__call__() if self.open < self._most else _Refusing()

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """Count it."""
        self.open += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """Count it no more."""
        self.open -= 1
        super().connection_lost(handler, exc)


class _Refusing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.write(_FULL)
        stream.close()


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        if isinstance(cause, HttpProcessingError):  # a client's doing
            self._log.write("malformed", reason=f"{type(cause).__name__}: {cause.message}"[:200])
            return
        fields = {"error": repr(cause)} if cause is not None else {}
        if cause is not None and cause.__traceback__ is not None:
            last = cause.__traceback__
            while last.tb_next is not None:
                last = last.tb_next
            fields["at"] = f"{last.tb_frame.f_code.co_qualname}:{last.tb_lineno}"
        self._log.write("bug", message=record.getMessage(), **fields)


def _logger(log: Log) -> logging.Logger:
    """Return a logger of its own for what aiohttp has to say, which goes to the structured log."""
    logger = logging.Logger("qplan.router.front", logging.WARNING)
    logger.addHandler(_Handler(log))
    return logger
