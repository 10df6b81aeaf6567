"""The streaming client: posts one prompt, keeps the time of every chunk, and turns whatever happens into a record."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from qplan.core.errors import InputError
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.http1 import Connection, HttpError
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import CLIENT_LIMIT, Outcome, Request
from qplan.measure.load.stream import Answer, AnswerError, error_text, one_line

if TYPE_CHECKING:
    import ssl

_LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
# Servers on uvicorn drop an idle connection after 5 s; one that is about to be dropped is not worth reusing.
_IDLE_CONNECTION_S = 2.0
_CLOSING_S = 1.0
# Not in every server's vocabulary; left out for good when a server refuses them by name.
_OPTIONAL_FIELDS = ("ignore_eos", "stream_options")
_HINTS = {401: " (is the API key right?)", 403: " (is the API key right?)", 404: " (is the model's name right?)"}


class Client:
    """Sends requests to one endpoint; an asynchronous context manager.

    Parameters
    ----------
    endpoint
        Where to.
    timeout_s
        Longest time of a request from sending to its end.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._fields: dict[str, Any] = {
            "model": endpoint.model,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        route = urlsplit(endpoint.route)
        host = route.netloc.rpartition("@")[2]
        key = f"Authorization: Bearer {endpoint.api_key}\r\n" if endpoint.api_key else ""
        self._head = (
            f"POST {route.path} HTTP/1.1\r\nHost: {host}\r\n{key}Accept: text/event-stream\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._host = route.hostname or ""
        self._port = route.port or (443 if route.scheme == "https" else 80)
        self._tls = _tls_context() if route.scheme == "https" else None
        self._addresses: list[str] = []
        self._unknown_host = ""
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Client:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [str(entry[4][0]) for entry in found]
        except OSError as error:
            self._unknown_host = one_line(f"cannot find {self._host}: {error.strerror or error}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in list(self._open):
            connection.close()
        # Transports close in a later turn of the loop; a loop that ends before that may wait for them for ever.
        deadline = time.perf_counter() + _CLOSING_S
        while self._open and time.perf_counter() < deadline:
            await asyncio.sleep(1e-3)

    async def send(self, index: int, scheduled_s: float, prompt: Prompt, origin_s: float) -> Request:
        """Send one request now and follow it to its end; never raises for what a server or a network does.

        Times in the record count from `origin_s`, the start of the run on :func:`time.perf_counter`. Cancelling the
        task that runs this cancels the request, which is then recorded as cancelled.
        """
        body = self._body(prompt)
        answer = Answer()
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                outcome, reason = await self._follow(body, prompt, answer)
        except TimeoutError:
            outcome, reason = Outcome.TIMEOUT, f"not over after {self._timeout_s:g} s"
        except asyncio.CancelledError:
            outcome, reason = Outcome.CANCELLED, "the run was stopped"
        if answer.done and outcome in (Outcome.TIMEOUT, Outcome.CANCELLED):  # all said, only the body left open
            outcome, reason = answer.close(prompt.output_tokens)
        return Request(
            index,
            scheduled_s,
            sent_s - origin_s,
            time.perf_counter() - origin_s,
            tuple([arrived_s - origin_s for arrived_s in answer.chunk_s]),
            answer.input_tokens,
            answer.output_tokens,
            prompt.output_tokens,
            outcome,
            self._without_key(reason),
        )

    async def _follow(self, body: bytes, prompt: Prompt, answer: Answer) -> tuple[Outcome, str]:
        try:
            status, refusal = await self._post(body, answer)
            if status in (400, 422) and self._drop_refused(refusal, body):
                status, refusal = await self._post(self._body(prompt), answer)
        except AnswerError as error:
            return Outcome.FAILED, str(error)
        except (HttpError, OSError) as error:
            if answer.chunk_s:
                return answer.broken_off(_cause(error))
            return Outcome.FAILED, _cause(error)
        if status != 200:
            return Outcome.FAILED, _status_text(status, refusal)
        return answer.close(prompt.output_tokens)

    async def _post(self, body: bytes, answer: Answer) -> tuple[int, bytes]:
        """Post `body`, its answer to `answer`; return the status, and what was said where that is not 200."""
        request = self._head + b"%d\r\n\r\n" % len(body) + body
        connection = self._kept() or await self._connect()
        try:
            refusal = await connection.ask(request, answer.feed)
        except (HttpError, ConnectionError):
            if not connection.used_before or connection.status:
                raise
            # A kept connection that the server dropped just before; it never read the request.
            connection = await self._connect()
            refusal = await connection.ask(request, answer.feed)
        if connection.open:
            self._idle.append(connection)
        return connection.status, refusal

    def _kept(self) -> Connection | None:
        oldest_s = time.perf_counter() - _IDLE_CONNECTION_S
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since_s > oldest_s:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        if not self._addresses:
            raise HttpError(self._unknown_host)
        loop = asyncio.get_running_loop()
        name = self._host if self._tls else None
        for address in list(self._addresses):
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self._open), address, self._port, ssl=self._tls, server_hostname=name
                )
            except OSError as error:
                failure = error
                continue
            self._addresses = [address]  # the one that answers, of localhost's two for instance
            return connection
        if failure.errno in _LOCAL_ERRNOS:
            raise failure
        text = os.strerror(failure.errno) if failure.errno and failure.errno > 0 else str(failure)
        raise HttpError(one_line(f"cannot connect to {self._host}:{self._port}: {text}")) from None

    def _body(self, prompt: Prompt) -> bytes:
        fields = {**self._fields, "max_tokens": prompt.output_tokens}
        if self._endpoint.api == "completions":
            return orjson.dumps({**fields, "prompt": prompt.content})
        if not isinstance(prompt.content, str):
            raise InputError("prompts of token ids need the API 'completions', not 'chat'")
        return orjson.dumps({**fields, "messages": [{"role": "user", "content": prompt.content}]})

    def _drop_refused(self, refusal: bytes, body: bytes) -> bool:
        """Leave out of all requests what the server refused by name; false where `body` held nothing of the kind."""
        refused = [name for name in _OPTIONAL_FIELDS if name.encode() in refusal and f'"{name}"'.encode() in body]
        for name in refused:
            self._fields.pop(name, None)
        return bool(refused)

    def _without_key(self, text: str) -> str:
        return text.replace(self._endpoint.api_key, "***") if self._endpoint.api_key and text else text


def _tls_context() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()


def _status_text(status: int, body: bytes) -> str:
    try:
        text = error_text(orjson.loads(body))
    except orjson.JSONDecodeError:
        text = one_line(body)
    return f"HTTP {status}: {text or 'no message'}{_HINTS.get(status, '')}"


def _cause(error: Exception) -> str:
    """Say in one line what went wrong; with :data:`CLIENT_LIMIT` where it is this machine's fault."""
    if isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS:
        return f"{CLIENT_LIMIT}{os.strerror(error.errno)}"
    return one_line(str(error) or type(error).__name__)
