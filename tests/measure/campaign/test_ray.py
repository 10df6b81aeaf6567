"""Campaigns on a local Ray cluster with made-up GPUs: each test in a process of its own, which ends the cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qplan.profiles.store import ProfileStore

SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import psutil
import ray

from qplan.measure.campaign.events import EngineReady, EngineStarting, PointRetried
from qplan.measure.campaign.planfile import read_plan
from qplan.measure.campaign.runner import run_campaign
from qplan.profiles.store import ProfileStore

folder = Path(sys.argv[1])
ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
events, killed = [], []

def supervises(process):
    try:
        return "supervise" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # Ray's idle workers come and go
        return False

def emit(event):
    events.append(event)
    if isinstance(event, EngineReady) and not killed:
        # The worker that runs a task is the parent of its engine's supervisor.
        killed.append(next(p.ppid() for p in psutil.Process().children(recursive=True) if supervises(p)))
        os.kill(killed[0], signal.SIGKILL)

plan, text = read_plan(folder / "plan.yaml")
with ProfileStore(str(folder / "store.db")) as store:
    options = {"stopping": lambda: False, "cache": folder / "cache", "ray_address": "auto"}
    ended = run_campaign(plan, text, store, emit=emit, **options)
print(json.dumps({
    "done": ended.done, "failed": ended.failed,
    "devices": [event.devices for event in events if isinstance(event, EngineStarting)],
    "retried": [event.reason for event in events if isinstance(event, PointRetried)],
}))
ray.shutdown()
"""


@pytest.mark.slow
def test_blocks_go_to_gpus_of_the_cluster_and_a_dead_worker_is_tried_again(
    write_plan: Callable[..., Path], tmp_path: Path, on_ray: Callable[[str], dict[str, Any]]
) -> None:
    write_plan(gpu="h100", tp="[2]", quantizations="[BF16, Q8_0]")
    found = on_ray(SCRIPT)
    assert (found["done"], found["failed"]) == (2, 0), found
    assert {len(devices) for devices in found["devices"]} == {2}
    assert {device for devices in found["devices"] for device in devices} <= {0, 1, 2, 3}
    assert sum("Ray worker died" in reason for reason in found["retried"]) == 1
    with ProfileStore(str(tmp_path / "store.db")) as store:
        assert store.read(["status"]).num_rows == 2
