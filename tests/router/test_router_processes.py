"""The router as a process: draining, reloading, keys, and several processes behind one port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.router.crowd import Crowd
from tests.router.live import Replica, Router, ask, fleet, replicas_file, texts, wait_for

LIMITS = "limits: {health: 100ms, drain: 1s}\n"


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[Replica]]:
    started = [Replica("a", itl_s=0.004), Replica("b", itl_s=0.004)]
    yield started
    for replica in started:
        replica.kill()


@pytest.fixture
def router(tmp_path: Path, replicas: list[Replica]) -> Iterator[Router]:
    with fleet(tmp_path, replicas, extra=LIMITS, owned=False) as started:
        yield started


class Streaming(threading.Thread):
    """A stream that is read by a thread of its own."""

    def __init__(self, router: Router, tokens: int) -> None:
        super().__init__()
        self.router, self.tokens = router, tokens
        self.answer = b""
        self.start()
        wait_for(lambda: any(v for k, v in router.metrics().items() if k.startswith("qplan_router_in_flight")))

    def run(self) -> None:
        self.answer = ask(self.router.url, stream=True, max_tokens=self.tokens)[1]


def test_draining_lets_streams_end(router: Router) -> None:
    stream = Streaming(router, 100)
    assert router.stop() == 0
    stream.join()
    assert len(texts(stream.answer)) == 100
    assert stream.answer.endswith(b"data: [DONE]\n\n")
    assert [event["under_way"] for event in router.events("stopped")] == [0]


@pytest.mark.slow
def test_what_outlasts_the_drain_ends_with_an_error_event(router: Router) -> None:
    stream = Streaming(router, 10**6)
    assert router.stop() == 0
    stream.join()
    assert b"shutting down" in stream.answer
    assert texts(stream.answer)
    assert router.events("request")[-1]["outcome"] == "broken"


def test_reloading_drops_nothing(router: Router, replicas: list[Replica]) -> None:
    both, one = replicas_file(replicas), replicas_file(replicas[1:])

    async def reload() -> None:
        for text in (one, both, "replicas: [", one):
            await asyncio.sleep(0.1)
            router.replicas.write_text(text + LIMITS)
            router.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.2)

    crowd = Crowd(router.url, 4)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(crowd.run(seconds=30, requests=10**6, during=reload))
    assert set(crowd.ends) == {"complete"}
    assert list(router.health()["replicas"]) == ["b"]
    outcomes = [event["outcome"] for event in router.events("reload")]
    assert "refused" in outcomes
    assert outcomes[-1] == "done"
    assert "not YAML" in next(e["reason"] for e in router.events("reload") if e["outcome"] == "refused")
    router.replicas.write_text(replicas_file(replicas[:1]) + LIMITS)  # a changed file is enough
    wait_for(lambda: list(router.health()["replicas"]) == ["a"])


@pytest.mark.slow
def test_a_key_of_a_replica(tmp_path: Path, replicas: list[Replica], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "very-secret")
    text = f"replicas:\n- {{name: a, url: '{replicas[0].url}', group: g, model: inner, api_key_env: UPSTREAM_KEY}}\n"
    router = Router(tmp_path, None, text)
    try:
        assert ask(router.url, {"Authorization": "Bearer mine"}, model="m")[0] == 200
        seen = replicas[0].seen()
        assert "Authorization: Bearer very-secret\r\n" in seen["head"]
        assert "mine" not in seen["head"]
        assert json.loads(seen["last"])["model"] == "inner"
        assert ask(router.url, model="other")[0] == 404
        assert "secret" not in router.log + str(router.metrics())
    finally:
        router.stop()


@pytest.mark.slow
def test_several_processes_are_one_router(tmp_path: Path, replicas: list[Replica]) -> None:
    with fleet(tmp_path, replicas, extra=LIMITS, processes=2, owned=False) as router:
        for _ in range(20):
            assert ask(router.url)[0] == 200
        assert router.outcomes() == {"ok": 20}  # whichever is asked
        served: dict[int, int] = {}
        for event in wait_for(lambda: len(found := router.events("request")) == 20 and found):
            served[event["process"]] = served.get(event["process"], 0) + 1
        assert len(served) == 2
        pid: dict[int, Any] = {event["process"]: event["pid"] for event in router.events("listening")}
        os.kill(pid[0], signal.SIGKILL)
        wait_for(lambda: len(router.events("listening")) == 3, 60)
        assert all(ask(router.url)[0] == 200 for _ in range(10))
        assert router.stop() == 0
        assert len(router.events("stopped")) == 2
