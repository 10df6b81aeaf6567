"""A streaming OpenAI-compatible server with known delays, a known capacity, and faults on demand.

Real sockets, no model. Delays are absolute, from a microsecond timer where the system has one (Linux), so that they do
not drift; a slot that becomes free at ``t`` starts its next request at ``t``, not when the timer fired. A token is a
word.

In a test::

    with fake_server(ttft_s=0.05, itl_s=0.01) as url: ...
    with fake_server(slots=4, service_s=0.1) as url: ...      # at most slots / service_s requests per second, FIFO
    with fake_server(fault="closes", fault_every=3) as url: ...

On the command line: ``python tests/measure/fake_server.py --slots 4 --service-s 0.1`` prints its address and serves
until its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import heapq
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import cast

FAULTS = (
    "401",  # wrong key, whatever the key
    "500",
    "error_body",  # 200 with an error as JSON
    "error_event",  # 200, a few tokens, then an error in the stream
    "garbage",  # 200 and bytes that mean nothing
    "half_utf8",  # text of several bytes a character, split inside characters; the client must not mind
    "cut_utf8",  # ends inside a character
    "split",  # every byte in a write of its own; the client must not mind
    "crlf",  # CRLF line ends, comments, no space after "data:"; the client must not mind
    "endless",  # never stops sending tokens
    "hangs",  # takes the request, answers nothing
    "slow_headers",  # headers a second late
    "closes",  # closes in mid-stream
    "no_usage",
    "no_done",  # ends without [DONE]; the client must not mind
    "short",  # half of the tokens, then ends without a reason
    "empty",  # a finished stream without text
    "refuses_ignore_eos",  # 400 for a field it does not know
    "stale",  # says keep-alive, and closes the connection when the next request arrives on it
)


@dataclass(frozen=True)
class Options:
    """What the server does.

    Attributes
    ----------
    ttft_s, itl_s
        From a request's start in a slot to its first token, and between tokens.
    slots
        Requests served at once; 0 for no limit. Others wait in order.
    service_s
        Time that a request holds its slot, its tokens spread from ``ttft_s`` to it; 0 for
        ``ttft_s + (tokens - 1) * itl_s``.
    fault, fault_every
        What goes wrong, with every n-th request. A request for a model of a fault's name has that fault, too.
    api_key
        Bearer token to ask for.
    long_words
        1 for a tokenizer that makes two tokens of words of five letters and more.
    """

    ttft_s: float = 0.0
    itl_s: float = 0.0
    slots: int = 0
    service_s: float = 0.0
    fault: str = ""
    fault_every: int = 1
    api_key: str = ""
    long_words: int = 0


@contextmanager
def fake_server(**options: float | str) -> Iterator[str]:
    """Run the server in a process of its own; yield its address."""
    given = asdict(Options(**options))  # type: ignore[arg-type]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    process = subprocess.Popen([sys.executable, __file__, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin:
        url = process.stdout.readline().decode().strip()
        assert url, "the fake server did not start"
        yield url
        process.stdin.close()


class Timers:
    """Callbacks at absolute times of the monotonic clock, to some ten microseconds where there is a timer for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._armed = float("inf")
        self._timer = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = self._libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # 1: CLOCK_MONOTONIC
            loop.add_reader(self._timer, self._fire)

    def at(self, when: float, callback: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, callback))
        if when < self._armed:
            self._arm(when)

    def _arm(self, when: float) -> None:
        self._armed = when
        if self._timer < 0:
            self._loop.call_later(max(0.0, when - time.perf_counter()), self._fire)
            return
        when = max(when, 1e-9)
        seconds = int(when)
        spec = (ctypes.c_long * 4)(0, 0, seconds, int((when - seconds) * 1e9))  # interval, then absolute time
        self._libc.timerfd_settime(self._timer, 1, spec, None)  # 1: TFD_TIMER_ABSTIME

    def _fire(self) -> None:
        if self._timer >= 0:
            with suppress(BlockingIOError):
                os.read(self._timer, 8)
        self._armed = float("inf")
        while self._heap and self._heap[0][0] <= time.perf_counter() + 20e-6:
            heapq.heappop(self._heap)[2]()
        if self._heap and self._heap[0][0] < self._armed:
            self._arm(self._heap[0][0])


class Slots:
    """The FIFO queue before a number of slots."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.running = 0
        self.waiting: deque[Answer] = deque()

    def ask(self, answer: Answer) -> None:
        if self.count and self.running >= self.count:
            self.waiting.append(answer)
        else:
            self.running += 1
            answer.start(answer.arrived)

    def free(self, at: float) -> None:
        self.running -= 1
        if self.waiting:
            self.running += 1
            answer = self.waiting.popleft()
            answer.start(max(at, answer.arrived))

    def drop(self, answer: Answer, now: float) -> None:
        """Forget a request whose client went away."""
        if answer.started:
            self.free(now)
        else:
            with suppress(ValueError):
                self.waiting.remove(answer)


class Answer:
    """One request on its way through a slot."""

    def __init__(self, connection: Connection, body: dict[str, object], fault: str) -> None:
        self.connection, self.fault = connection, fault
        self.arrived = time.perf_counter()
        self.server = connection.server
        self.chat = "messages" in body
        self.prompt_tokens = count_tokens(body, self.server.options.long_words)
        asked = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        assert isinstance(asked, int)
        self.asked, self.tokens = asked, asked // 2 if fault == "short" else asked
        self.usage = bool(body.get("stream_options")) and fault != "no_usage"
        self.started = self.over = False
        self.sent = 0

    def start(self, at: float) -> None:
        options = self.server.options
        self.started, self.began = True, at
        self.service_s = options.service_s or options.ttft_s + max(0, self.tokens - 1) * options.itl_s
        last = max(1, self.tokens - 1)
        self.gap_s = (self.service_s - options.ttft_s) / last if options.service_s else options.itl_s
        self.server.timers.at(at + options.ttft_s, self.token)

    def token(self) -> None:
        if self.over:
            return
        if self.fault == "empty" or (self.sent >= self.tokens and self.fault != "endless"):
            self.finish(b"")
            return
        word = "日本語 " if self.fault in ("half_utf8", "cut_utf8") else "word "
        data = self.event({"text": word})
        self.sent += 1
        if self.fault in ("closes", "cut_utf8", "error_event") and self.sent * 2 >= self.tokens:
            if self.fault == "error_event":
                data = b'data: {"error": {"message": "the engine died", "code": 500}}\n\n'
            elif self.fault == "cut_utf8":
                data = data[: data.index("語".encode()) + 1]
            self.connection.send(data)
            self.end()
            self.connection.close() if self.fault == "closes" else self.connection.finished()
            return
        if self.sent == self.tokens and self.fault != "endless":
            self.finish(data)
            return
        self.connection.send(data)
        first = self.began + self.server.options.ttft_s
        self.server.timers.at(first + self.sent * max(self.gap_s, 1e-3 if self.fault == "endless" else 0.0), self.token)

    def finish(self, last: bytes) -> None:
        reason = None if self.fault == "short" else "length"
        tail = last + (self.event({"text": ""}, reason) if reason else b"")
        if self.usage:
            usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens}
            tail += b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        if self.fault not in ("no_done", "short"):
            tail += b"data: [DONE]\n\n"
        end = self.began + self.service_s
        if last and end > time.perf_counter() + 1e-3:  # a service time that outlasts the tokens
            self.server.timers.at(end, lambda: self.close(tail))
        else:
            self.close(tail)

    def close(self, tail: bytes) -> None:
        if not self.over:
            self.connection.send(tail)
            self.end(self.began + self.service_s)
            self.connection.finished()

    def end(self, at: float | None = None) -> None:
        self.over = True
        self.server.slots.free(at if at is not None else time.perf_counter())

    def cancel(self) -> None:
        if not self.over:
            self.over = True
            self.server.slots.drop(self, time.perf_counter())

    def event(self, choice: dict[str, object], finish: str | None = None) -> bytes:
        content = {"delta": {"content": choice["text"]}} if self.chat else choice
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        document = {"object": kind, "choices": [{"index": 0, **content, "finish_reason": finish}]}
        return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


class Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1, one request at a time."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.buffer = b""
        self.answer: Answer | None = None
        self.transport: asyncio.Transport
        self.open = False
        self.served = 0
        self.fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast("asyncio.Transport", transport), True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self.answer is not None:
            self.answer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.casefold(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        method, path, _ = lines[0].split(" ")
        if self.fault == "stale" and self.served:
            self.close()
            return
        self.served += 1
        self.route(method, path, headers, rest[:length])

    def route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        slots, options = self.server.slots, self.server.options
        if options.api_key and headers.get("authorization") != f"Bearer {options.api_key}":
            self.reply(401, {"error": {"message": "Invalid API key", "code": 401}})
        elif path in ("/v1/completions", "/v1/chat/completions") and method == "POST":
            self.complete(json.loads(body))
        elif path == "/tokenize" and method == "POST":
            document = json.loads(body)
            text = document.get("content", document.get("prompt", ""))
            self.reply(200, {"tokens": [hash(word) % 50_000 for word in text.split()]})
        elif path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
        elif path == "/health":
            self.reply(200, {"status": "ok"})
        elif path == "/metrics":
            state = {"processing": slots.running, "deferred": len(slots.waiting)}
            text = "".join(f"llamacpp:requests_{name} {value}\n" for name, value in state.items())
            self.reply(200, text)
        else:
            self.reply(404, {"error": {"message": f"no route {path}"}})

    def complete(self, body: dict[str, object]) -> None:
        self.server.count += 1
        options = self.server.options
        fault = options.fault if self.server.count % options.fault_every == 0 else ""
        self.fault = fault = str(body["model"]) if body.get("model") in FAULTS else fault
        if fault == "401":
            self.reply(401, {"error": {"message": "Invalid API key", "code": 401}})
        elif fault == "500":
            self.reply(500, {"error": {"message": "out of memory", "code": 500}})
        elif fault == "error_body":
            self.reply(200, {"error": {"message": "model is loading", "code": 503}})
        elif fault == "refuses_ignore_eos" and "ignore_eos" in body:
            self.reply(400, {"error": {"message": "unexpected field: ignore_eos", "code": 400}})
        elif fault == "garbage":
            self.head()
            self.send(bytes(range(256)) * 4 + b"\n\n")
            self.finished()
        elif fault == "slow_headers":
            self.server.timers.at(time.perf_counter() + 1.0, lambda: self.queue(body, fault))
        elif fault != "hangs":
            self.queue(body, fault)

    def queue(self, body: dict[str, object], fault: str) -> None:
        self.head()
        self.answer = Answer(self, body, fault)
        self.server.slots.ask(self.answer)

    def head(self) -> None:
        if self.open:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )

    def send(self, data: bytes) -> None:
        if not self.open or not data:
            return
        if self.fault == "crlf":
            data = b": a comment\r\n" + data.replace(b"\n", b"\r\n").replace(b"data: ", b"data:")
        if self.fault == "split":
            parts = [data[i : i + 1] for i in range(len(data))]
        elif self.fault == "half_utf8":
            cut = data.find("本".encode()) + 1
            parts = [data[:cut], data[cut:]] if cut else [data]
        else:
            parts = [data]
        for part in parts:
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def finished(self) -> None:
        """End the answer; the connection stays for the next request."""
        self.answer = None
        if self.open:
            self.transport.write(b"0\r\n\r\n")

    def close(self) -> None:
        self.answer = None
        if self.open:
            self.open = False
            self.transport.close()

    def reply(self, status: int, document: object) -> None:
        data = (document if isinstance(document, str) else json.dumps(document)).encode()
        kind = "text/plain" if isinstance(document, str) else "application/json"
        head = f"HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
        self.transport.write(head.encode() + data)


class FakeServer:
    """The shared state of all connections."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.timers = Timers(loop)
        self.slots = Slots(options.slots)
        self.count = 0


def count_tokens(body: dict[str, object], long_words: int) -> int:
    """Words of a prompt or of all messages, or the length of a list of token ids."""
    prompt, messages = body.get("prompt", ""), body.get("messages", [])
    if isinstance(prompt, list):
        return len(prompt)
    assert isinstance(messages, list)
    words = " ".join([str(prompt), *(str(message["content"]) for message in messages)]).split()
    return len(words) + long_words * sum(len(word) > 4 for word in words)


async def serve(options: Options) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    state = FakeServer(options, loop)
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    server.close()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in fields(Options):
        kind = type(option.default)
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default)
    options = Options(**vars(parser.parse_args()))
    if options.fault and options.fault not in FAULTS:
        parser.error(f"unknown fault {options.fault}; expected one of {', '.join(FAULTS)}")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
