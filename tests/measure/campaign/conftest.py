"""Plans of the scripted engine, installed as a plug-in, and campaigns run with it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from qplan.measure.campaign.events import CampaignEnded, Event
from qplan.measure.campaign.planfile import read_plan
from qplan.measure.campaign.runner import run_campaign
from qplan.profiles.store import ProfileStore

PLUGIN = Path(__file__).with_name("plugin")

PLAN = """\
name: scripted
gpu: {gpu}
{devices}
models: [{{name: tiny, weights: nothing, context: 512, max_sequences: 4}}]
quantizations: {quantizations}
engines: [{{name: scripted, settings: {settings}}}]
tp: {tp}
workloads: ["isl=8,osl=4"]
loads: {loads}
slo: ["p90:ttft=1s"]
requests: {requests}
warm_up: 0
repeats: {repeats}
order: {order}
retries: {retries}
energy: off
{more}
"""
_DEFAULTS = {
    "gpu": "cpu",
    "devices": "",
    "quantizations": "[BF16]",
    "settings": "{}",
    "tp": "[1]",
    "loads": "[20]",
    "requests": 5,
    "repeats": 1,
    "order": "interleaved",
    "retries": 4,  # a busy machine makes a client late, which is measured again
    "more": "",
}

WritePlan = Callable[..., Path]


@dataclass
class Run:
    """A campaign that was run in this process."""

    ended: CampaignEnded
    events: list[Event] = field(default_factory=list)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the scripted engine, here and in child processes."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    paths = [str(PLUGIN), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture
def write_plan(tmp_path: Path, plugin: None) -> WritePlan:
    """Write a plan file of the scripted engine; keyword arguments replace its parts."""

    def write(**parts: object) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(PLAN.format(**{**_DEFAULTS, **parts}))
        return path

    return write


@pytest.fixture
def run_plan(tmp_path: Path) -> Callable[..., Run]:
    """Run a plan in this process, with the store ``store.db``."""

    def run(path: Path, on_event: Callable[[Event], None] = lambda event: None, **options: Any) -> Run:
        plan, text = read_plan(path)
        events: list[Event] = []

        def emit(event: Event) -> None:
            events.append(event)
            on_event(event)

        settings: dict[str, Any] = {"stopping": lambda: False, "cache": tmp_path / "cache", **options}
        with ProfileStore(str(tmp_path / "store.db")) as store:
            return Run(run_campaign(plan, text, store, emit=emit, **settings), events)

    return run


@pytest.fixture
def observations(tmp_path: Path) -> Callable[..., list[Mapping[str, Any]]]:
    """Read columns of the store's observations, sorted."""

    def read(*columns: str, **only: Any) -> list[Mapping[str, Any]]:
        with ProfileStore(str(tmp_path / "store.db")) as store:
            rows = store.read(columns, **only).to_pylist()
        return sorted(rows, key=str)

    return read


@pytest.fixture
def no_orphans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Return a function that lists what is left of the processes that the test started; checked at its end too."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("QPLAN_TEST_MARK", mark)

    def left() -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                ours = process.environ().get("QPLAN_TEST_MARK") == mark and "resource_tracker" not in line
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(line)
            except psutil.Error:
                continue
        return found

    yield left
    assert left() == []
