"""Clients that mean harm: memory stays bounded, others are served, and nothing is let through."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.router.live import Replica, Router, ask, fleet, get, texts, wait_for

LIMITS = "limits: {body: 1MiB, bodies: 4MiB, head: 1s, upload: 1s, stall: 1s, connections: 300, health: 500ms}\n"
GROWTH_BYTES = 64 * 2**20
GOOD = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, Replica]]:
    replica = Replica("a", itl_s=0.002)
    with fleet(tmp_path_factory.mktemp("router"), [replica], extra=LIMITS) as router:
        yield router, replica


def connect(router: Router) -> socket.socket:
    parts = urlsplit(router.url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def exchange(router: Router, data: bytes) -> bytes:
    """Send bytes, close this side, and return everything that comes back."""
    with connect(router) as client:
        try:
            client.sendall(data)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        except ConnectionError:
            pass
        return answer


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


def serves(router: Router) -> bool:
    return len(texts(ask(router.url, stream=True)[1])) == 8 and not router.events("bug")


def test_slow_heads_and_bodies_are_cut_off(attacked: tuple[Router, Replica]) -> None:
    router, replica = attacked
    before = replica.seen()["count"]
    head, body = connect(router), connect(router)
    with head, body:
        head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
        body.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        began_s = time.monotonic()
        assert serves(router)
        assert head.recv(1000) == b""  # no head, no answer
        assert body.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began_s < 20  # of what the clients would wait
    assert replica.seen()["count"] == before + 1


def test_a_body_that_is_too_large_is_refused_before_it_is_read(attacked: tuple[Router, Replica]) -> None:
    router, _ = attacked
    before = router.memory_bytes()
    for _ in range(20):
        with connect(router) as client:
            client.sendall(POST + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 10_000)
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    assert exchange(router, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40).startswith(b"HTTP/1.1 413 ")
    assert router.memory_bytes() - before < GROWTH_BYTES
    assert serves(router)


def test_many_bodies_at_once_are_bounded(attacked: tuple[Router, Replica]) -> None:
    router, _ = attacked
    before = router.memory_bytes()
    clients = [connect(router) for _ in range(20)]
    try:
        for client in clients:
            client.settimeout(5)
            client.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 900_000)
        assert router.memory_bytes() - before < GROWTH_BYTES
        answers = [client.recv(12) for client in clients]
    finally:
        for client in clients:
            client.close()
    assert set(answers) == {b"HTTP/1.1 429", b"HTTP/1.1 408"}
    wait_for(lambda: serves(router))


@pytest.mark.parametrize(
    "head",
    [
        POST + b"".join(b"X-%d: y\r\n" % n for n in range(1000)),
        POST + b"X-Long: " + b"y" * 100_000 + b"\r\n",
        b"POST /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: r\r\n",
    ],
    ids=["many fields", "a long field", "a long path"],
)
def test_header_floods_are_refused(attacked: tuple[Router, Replica], head: bytes) -> None:
    router, replica = attacked
    before = replica.seen()["count"]
    answer = exchange(router, head + b"Content-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ") or answer.startswith(b"HTTP/1.0 400 ")
    assert replica.seen()["count"] == before
    assert serves(router)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 50\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 5 5\r\n",
    ],
)
def test_ambiguous_framing_is_refused(attacked: tuple[Router, Replica], framing: bytes) -> None:
    """What two parsers could read as different requests must not be smuggled to a replica."""
    router, replica = attacked
    before = replica.seen()["count"]
    smuggled = b"0\r\n\r\n" + POST + b"Content-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD)
    answer = exchange(router, POST + framing + b"\r\n" + smuggled)
    assert b" 200 " not in answer
    assert replica.seen()["count"] == before


def test_pipelined_requests_are_answered_in_turn(attacked: tuple[Router, Replica]) -> None:
    router, _ = attacked
    one = POST + b"Content-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD)
    last = one.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n")
    assert exchange(router, one * 9 + last).count(b"HTTP/1.1 200 OK") == 10


def test_a_flood_of_pipelined_requests_is_bounded(attacked: tuple[Router, Replica]) -> None:
    router, _ = attacked
    before = router.memory_bytes()
    with connect(router) as client:
        client.settimeout(1)
        one = POST + b"Content-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD)
        with suppress(TimeoutError):
            client.sendall(one * 100_000)  # and no answer is read
        assert serves(router)
    assert router.memory_bytes() - before < GROWTH_BYTES


def test_disconnecting_cancels_the_request_at_the_replica(attacked: tuple[Router, Replica]) -> None:
    router, replica = attacked
    before = replica.seen()["cancelled"]
    body = json.dumps({"messages": [{"role": "user"}], "max_tokens": 10**6, "stream": True}).encode()
    for _ in range(30):
        with connect(router) as client:
            client.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            assert client.recv(100)
    wait_for(lambda: replica.seen()["cancelled"] == before + 30)
    wait_for(lambda: not [v for k, v in router.metrics().items() if k.startswith("qplan_router_in_flight") and v])
    assert router.outcomes()["left"] >= 30
    assert serves(router)


def test_a_client_that_does_not_read_holds_little(attacked: tuple[Router, Replica]) -> None:
    router, replica = attacked
    before, cancelled = router.memory_bytes(), replica.seen()["cancelled"]
    body = json.dumps({"messages": [{"role": "user"}], "max_tokens": 10**6, "stream": True}).encode()
    replica.fault("")
    clients = [connect(router) for _ in range(3)]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert serves(router)
    assert router.memory_bytes() - before < GROWTH_BYTES
    for client in clients:
        client.close()
    wait_for(lambda: replica.seen()["cancelled"] >= cancelled + 3)


def test_connections_are_bounded(attacked: tuple[Router, Replica]) -> None:
    router, _ = attacked

    async def storm() -> None:
        parts = urlsplit(router.url)
        made = await asyncio.gather(*(asyncio.open_connection(parts.hostname, parts.port) for _ in range(400)))
        heads = await asyncio.gather(*(reader.read(12) for reader, _ in made))  # of who says nothing, within a second
        for _, writer in made:
            writer.close()
        assert heads.count(b"HTTP/1.1 503") >= 90

    run(storm)
    wait_for(lambda: serves(router))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.sampled_from([b"", POST, POST + b"Content-Length: 30\r\n\r\n", b"GET /health "]))
def test_whatever_bytes_come_it_goes_on(attacked: tuple[Router, Replica], data: bytes, start: bytes) -> None:
    router, _ = attacked
    with connect(router) as client:
        client.sendall(start + data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := client.recv(65536):
                answer += piece
        except ConnectionError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.")
    assert b"Traceback" not in answer
    assert router.alive()


def test_it_is_well_after_all_that(attacked: tuple[Router, Replica]) -> None:
    router, _ = attacked
    assert get(f"{router.url}/health")[0] == 200
    assert serves(router)
    assert not router.events("bug"), router.events("bug")[:3]
