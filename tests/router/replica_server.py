"""A replica for tests of the router: answers streams and whole answers, fast, and fails in one way if it is told to.

``python tests/router/replica_server.py --port 8001 --fault garbage`` prints its address and serves until killed. Every
token names the replica and the request's number, so that a client can tell whose stream it reads, and from where.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, cast

FAULTS = (
    "garbage",  # a stream of bytes that mean nothing
    "late_garbage",  # three tokens, then bytes that mean nothing
    "cut",  # closes in mid-stream
    "half_event",  # closes inside an event
    "error_event",  # an error in the stream, after three tokens
    "error_first",  # an error as the first event
    "error_body",  # 200 and an error
    "silent",  # takes requests and says nothing
    "stalls",  # three tokens, and nothing more
    "busy",  # 429 with Retry-After
    "fails",  # 500
    "refuses",  # 400: the request's fault
    "sick",  # /health says 503
    "large",  # an answer of 8 MiB that is not streamed
)


_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.transport: asyncio.Transport
        self.handle: asyncio.TimerHandle | None = None
        self.streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.handle is not None:
            self.handle.cancel()
        if self.streaming:
            self.server.cancelled += 1
            self.server.running -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, blank, rest = self.buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
            self.answer(method, path, head, rest[:length])

    def answer(self, method: str, path: str, head: bytes, body: bytes) -> None:
        server = self.server
        if path == "/health":
            self.whole(503 if server.fault == "sick" else 200, {"status": "ok"})
        elif path == "/metrics":
            self.whole(200, f"vllm:num_requests_running {server.running}\nvllm:num_requests_waiting 0\n")
        elif path == "/is_sleeping":
            self.whole(200, {"is_sleeping": server.asleep})
        elif path in ("/sleep?level=1", "/wake_up") and method == "POST":
            server.asleep = path != "/wake_up"
            server.cut_short += server.asleep and server.running
            self.whole(200, {})
        elif path == "/seen":
            seen = {"count": server.count, "cancelled": server.cancelled, "last": server.last, "head": server.last_head}
            seen |= {"asleep": server.asleep, "asked_asleep": server.asked_asleep, "cut_short": server.cut_short}
            self.whole(200, seen)
        elif path == "/fault" and method == "POST":
            server.fault = body.decode()
            self.whole(200, {})
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self.complete(path, head, body)
        else:
            self.whole(404, {"error": {"message": f"no route {path}"}})

    def complete(self, path: str, head: bytes, body: bytes) -> None:
        server = self.server
        server.count += 1
        server.last, server.last_head = body.decode(), head.decode()
        document = json.loads(body)
        chat = path.endswith("chat/completions")
        tokens = document.get("max_tokens") or document.get("max_completion_tokens") or 8
        fault = server.fault
        server.asked_asleep += server.asleep
        if fault == "silent":
            return
        if fault == "busy":
            self.whole(429, {"error": {"message": "busy"}}, "Retry-After: 7\r\n")
        elif fault == "fails":
            self.whole(500, {"error": {"message": "out of memory"}})
        elif fault == "refuses":
            self.whole(400, {"error": {"message": "no such field", "code": "bad"}}, "X-Request-Id: 42\r\n")
        elif fault == "error_body":
            self.whole(200, {"error": {"message": "loading"}})
        elif not document.get("stream"):
            self.later(server.ttft_s + tokens * server.itl_s, lambda: self.document(chat, tokens))
        else:
            self.transport.write(_STREAM)
            self.streaming = True
            server.running += 1
            usage = bool((document.get("stream_options") or {}).get("include_usage"))
            self.later(server.ttft_s, lambda: self.token(chat, 0, tokens, server.count, usage))

    def document(self, chat: bool, tokens: int) -> None:
        size = 2**23 if self.server.fault == "large" else 0
        text = " ".join(f"{self.server.name}:{n}" for n in range(tokens)) + "x" * size
        if self.server.fault == "garbage":
            self.whole(200, "\x00\x01 garbage")
            return
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices = [{"index": 0, "finish_reason": "length", **choice}]
        self.whole(200, {**self.about(chat, streamed=False), "choices": choices, "usage": counts(tokens)})

    def token(self, chat: bool, sent: int, tokens: int, number: int, usage: bool) -> None:
        fault, server = self.server.fault, self.server
        if self.transport.is_closing():
            return
        if fault == "garbage" or (fault == "late_garbage" and sent == 3):
            self.chunk(bytes(range(256)) * 4 + b"\n\n")
            self.done()
        elif fault == "stalls" and sent == 3:
            return
        elif fault in ("cut", "half_event") and sent == 3:
            if fault == "half_event":
                self.chunk(b'data: {"id": "a", "choi')
            self.streaming = False
            server.running -= 1
            self.transport.close()
        elif fault == "error_first" or (fault == "error_event" and sent == 3):
            self.chunk(b'data: {"error": {"message": "the engine died", "code": 500}}\n\n')
            self.done()
        elif sent < tokens:
            text = f"{server.name}:{number}:{sent} "
            self.event(chat, {"delta": {"content": text}} if chat else {"text": text})
            self.later(server.itl_s, lambda: self.token(chat, sent + 1, tokens, number, usage))
        else:
            self.event(chat, {**({"delta": {}} if chat else {"text": ""}), "finish_reason": "length"})
            if usage:
                self.send({**self.about(chat, streamed=True), "choices": [], "usage": counts(tokens)})
            self.chunk(b"data: [DONE]\n\n")
            self.done()

    def event(self, chat: bool, choice: dict[str, Any]) -> None:
        self.send({**self.about(chat, streamed=True), "choices": [{"index": 0, "finish_reason": None, **choice}]})

    def about(self, chat: bool, *, streamed: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if streamed else "chat.completion") if chat else "text_completion"
        return {"id": "a", "object": kind, "created": 0, "model": "m"}

    def send(self, document: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def done(self) -> None:
        self.streaming = False
        self.server.running -= 1
        self.transport.write(b"0\r\n\r\n")

    def later(self, delay_s: float, act: Any) -> None:
        if delay_s <= 0:
            act()
        else:
            self.handle = asyncio.get_running_loop().call_later(delay_s, act)

    def whole(self, status: int, document: object, fields: str = "") -> None:
        data = (document if isinstance(document, str) else json.dumps(document)).encode()
        kind = "text/plain" if isinstance(document, str) else "application/json"
        head = f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\n{fields}Content-Length: {len(data)}\r\n\r\n"
        self.transport.write(head.encode() + data)


def counts(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}


class Server:
    """What all connections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.name, self.fault, self.port = options.name, options.fault, options.port
        self.ttft_s, self.itl_s = options.ttft_s, options.itl_s
        self.count = self.cancelled = self.running = 0
        self.asleep, self.asked_asleep, self.cut_short = False, 0, 0
        self.last = self.last_head = ""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="r")
    parser.add_argument("--fault", default="")
    parser.add_argument("--ttft-s", type=float, default=0.0)
    parser.add_argument("--itl-s", type=float, default=0.0)
    server = Server(parser.parse_args())
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", server.port, backlog=4096)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    await listening.serve_forever()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
