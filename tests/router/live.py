"""Real processes for tests of the router: replicas that can be killed, frozen and told to fail, and the router."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qplan.core.policy import Policy, PolicyBucket, PolicyClass, PolicyGroup, PolicyLevel

SERVER = Path(__file__).with_name("replica_server.py")
_RUN = (
    "import sys; from pathlib import Path; from qplan.router.process import Serving;"
    "from qplan.router.serve import serve; policy, replicas, port, processes = sys.argv[1:];"
    "serve(Serving(Path(policy), Path(replicas), '127.0.0.1', int(port), int(processes)))"
)


class Replica:
    """A replica's process."""

    def __init__(self, name: str, port: int = 0, **options: float | str) -> None:
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        self.name, self._flags = name, flags
        self.process = self._start(port)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url, "the replica did not start"
        self.port = int(self.url.rpartition(":")[2])

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SERVER), f"--name={self.name}", f"--port={port}", *self._flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def start(self) -> None:
        self.process = self._start(self.port)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def fault(self, name: str) -> None:
        get(f"{self.url}/fault", name.encode())

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(f"{self.url}/seen")[1])
        return found


class Router:
    """The router's process, in front of replicas."""

    def __init__(self, folder: Path, policy: Policy | None, replicas: str, processes: int = 1) -> None:
        self.policy, self.replicas = folder / "policy.json", folder / "replicas.yaml"
        write_policy(folder, policy)
        self.replicas.write_text(replicas)
        self._log = (folder / "router.log").open("wb")
        command = [sys.executable, "-c", _RUN, str(self.policy), str(self.replicas), "0", str(processes)]
        self.process = subprocess.Popen(command, stderr=self._log)
        listening = wait_for(lambda: self.events("listening") if self.alive() else None, 60)
        self.url = listening[0]["url"]
        if processes > 1:
            wait_for(lambda: len(self.events("listening")) == processes, 60)

    def alive(self) -> bool:
        assert self.process.poll() is None, self.log
        return True

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        # A line may be half written.
        events = [json.loads(line) for line in self.log.split("\n")[:-1] if line.startswith("{")]
        return [event for event in events if event["event"] == name]

    def metrics(self) -> dict[str, float]:
        text = get(f"{self.url}/metrics")[1].decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def outcomes(self) -> dict[str, int]:
        prefix = 'qplan_router_requests_total{outcome="'
        return {name[len(prefix) : -2]: int(v) for name, v in self.metrics().items() if name.startswith(prefix)}

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(f"{self.url}/health")[1])
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()

    def memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def fleet(
    folder: Path,
    replicas: Sequence[Replica],
    *,
    extra: str = "",
    processes: int = 1,
    policy: Policy | None = None,
    in_flight: int = 512,
    owned: bool = True,
) -> Iterator[Router]:
    """Run a router before these replicas; ends it, and them where they are `owned`."""
    router = None
    try:
        router = Router(folder, policy, replicas_file(replicas, in_flight) + extra, processes)
        yield router
    finally:
        if router is not None:
            router.stop()
        for replica in replicas if owned else ():
            replica.thaw()
            replica.kill()


def replicas_file(replicas: Sequence[Replica], in_flight: int = 512) -> str:
    lines = [f"  - {{name: {one.name}, url: '{one.url}', group: g, in_flight: {in_flight}}}\n" for one in replicas]
    return "replicas:\n" + "".join(lines)


def make_policy(**changes: Any) -> Policy:
    """A policy of one group whose replicas are wide enough for every test."""
    classes = (PolicyClass("chat", ("p90:ttft=1s", "p90:tpot=50ms")),)
    buckets = (PolicyBucket("chat", 0.0, None, 1.0, 100.0, 100.0, 80.0, 200.0),)
    group = PolicyGroup(
        name="g",
        model="m",
        quantization="W4A16",
        gpu="L40S",
        tp=1,
        engine="vllm",
        engine_version="1",
        count=4,
        kv_tokens=1e7,
        max_sequences=2048,
        idle_w=100.0,
        asleep_w=20.0,
        wake_s=10.0,
        quality={"chat": 1.0},
        prefill_s_per_token=1e-5,
        prefill_j_per_token=0.01,
        in_flight=(1.0, 2048.0),
        step_s=(0.001, 0.002),
        tpot_s=(0.001, 0.002),
        full_tpot_s=1.0,
        energy_j=(10.0,),
        energy_among_j=((10.0, 10.0),),
    )
    level = PolicyLevel(
        load_qps=1000.0,
        awake=(4,),
        shares=((1.0,),),
        power_w=None,
        bound_w=None,
        quality_price={"chat": 0.0},
        capacity_price=(0.0,),
        spill=(0,),
        serving=(4,),
    )
    policy = Policy(
        name="test",
        miss_j=100.0,
        margin=1.2,
        hold_s=60.0,
        headroom=1.3,
        classes=classes,
        buckets=buckets,
        groups=(group,),
        levels=(level,),
    )
    return replace(policy, **changes)


def write_policy(folder: Path, policy: Policy | None = None) -> Path:
    path = folder / "policy.json"
    path.write_text(json.dumps((policy or make_policy()).to_json()))
    return path


def wait_for(found: Any, timeout_s: float = 30.0) -> Any:
    """Wait until something is found, and return it."""
    until_s = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)
    return value


def get(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Ask once; return status, body and fields whatever the status."""
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


def ask(url: str, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, bytes, dict[str, str]]:
    """Ask for a chat completion."""
    document = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **body}
    return get(f"{url}/v1/chat/completions", json.dumps(document).encode(), headers)


def texts(stream: bytes) -> list[str]:
    """The tokens of a streamed chat answer."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event.get("choices")]
    return [delta["content"] for delta in deltas if delta.get("content")]
