"""Clients that account for every request: how many were sent, and how each ended.

Closed loop over raw connections: each client sends its next request when the last one is over. Every answer is read
token by token: a stream counts as complete only if every token of one replica came, in order, and ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

TOKENS = 4
_TEXT = re.compile(rb'"content": "(\w+):(\d+):(\d+) "')
_BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": %d, "stream": %s}'


class Crowd:
    """A number of clients of one router.

    Attributes
    ----------
    ends
        How requests ended: ``complete``; ``error event``; ``status 429`` and its like; what must not be: ``lost`` (the
        connection broke), ``corrupt`` (tokens missing, doubled, of two replicas, or an end without a word).
    replicas
        Which replicas the complete streams came from.
    """

    def __init__(self, url: str, clients: int, *, streamed: float = 0.8) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._clients, self._streamed = clients, streamed
        self.ends: Counter[str] = Counter()
        self.replicas: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.sent = 0
        self._stop = False

    async def run(self, *, seconds: float, requests: int, during: Callable[[], Awaitable[None]] | None = None) -> None:
        """Offer load until either is reached, or `during` is over; returns when every request is over."""
        tasks = [asyncio.create_task(self._client(number, requests)) for number in range(self._clients)]
        try:
            if during is None:
                await asyncio.wait(tasks, timeout=seconds)
            else:
                await asyncio.wait_for(during(), seconds)
        finally:
            self._stop = True
            await asyncio.gather(*tasks)

    async def _client(self, number: int, requests: int) -> None:
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while not self._stop and self.sent < requests:
            self.sent += 1
            streamed = (number + self.sent) % 10 < 10 * self._streamed
            began_s = time.monotonic()
            try:
                if writer is None or reader is None or writer.is_closing() or reader.at_eof():
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                end = await asyncio.wait_for(self._request(reader, writer, streamed), 60)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                end = "lost"
            except TimeoutError:
                end = "hung"
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            self.ends[end] += 1
            if end not in ("complete",) and writer is not None:
                writer.close()
                writer = None
            if end.startswith("status"):
                await asyncio.sleep(0.05)
        if writer is not None:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, streamed: bool) -> str:
        body = _BODY % (TOKENS, b"true" if streamed else b"false")
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" in head:
            answer = await _chunked(reader)
        else:
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            answer = await reader.readexactly(length)
        if status != 200:
            return f"status {status}"
        if not streamed:
            whole = answer.count(b":") > TOKENS and answer.endswith(b"}")
            return "complete" if whole else "corrupt"
        return self._judge(answer)

    def _judge(self, answer: bytes) -> str:
        found = _TEXT.findall(answer)
        in_order = [int(place) for _, _, place in found] == list(range(len(found)))
        of_one = len({(name, number) for name, number, _ in found}) <= 1
        if not in_order or not of_one:
            return "corrupt"
        if b'"error"' in answer:
            return "error event"
        if len(found) != TOKENS or not answer.endswith(b"data: [DONE]\n\n"):
            return "corrupt"
        self.replicas[found[0][0].decode()] += 1
        return "complete"


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    pieces: list[bytes] = []
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        piece = await reader.readexactly(size + 2)
        if not size:
            return b"".join(pieces)
        pieces.append(piece[:-2])
