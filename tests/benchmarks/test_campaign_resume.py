"""A campaign of 10,000 points goes on in under a second; run by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from qplan.measure.campaign.events import Event, PointStarted
from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.measure.campaign.points import Point
from qplan.measure.campaign.rows import point_columns
from qplan.measure.campaign.runner import run_campaign
from qplan.profiles.journal import Journal
from qplan.profiles.observations import from_rows
from qplan.profiles.store import ProfileStore

PLUGIN = Path(__file__).parents[1] / "measure" / "campaign" / "plugin"
PLAN = f"""\
name: large
gpu: cpu
models: [{{name: tiny, weights: nothing}}]
quantizations: [BF16, Q8_0, Q6_K, Q5_0, Q4_K, Q4_0, Q3_K, Q2_K, Q8_0-KV8-INT, Q4_0-KV8-INT]
engines: [scripted]
workloads: ["isl=64,osl=32", "isl=512,osl=64"]
loads: {list(range(1, 101))}
repeats: 5
"""


def test_ten_thousand_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))
    (tmp_path / "plan.yaml").write_text(PLAN)
    url = str(tmp_path / "store.db")
    points = make_grid(read_plan(tmp_path / "plan.yaml")[0]).points
    assert len(points) == 10_000
    with ProfileStore(url) as store, Journal(store, "large") as journal:
        store.add(from_rows([_observation(point) for point in points[:-1]], "made"))
        journal.open(PLAN, {point.key: point.to_json for point in points})
        with store.transaction(write=True) as connection:
            done = sa.text("UPDATE campaign_points SET state = 'done', attempts = 1, seconds = 60 WHERE key != :last")
            connection.execute(done, {"last": points[-1].key})

    times_s = [_resume_s(tmp_path / "plan.yaml", url) for _ in range(5)]
    with capsys.disabled():
        print(f"\nresume with 10,000 points: {min(times_s):.2f} s at best, {max(times_s):.2f} s at worst")  # noqa: T201
    assert min(times_s) < 1


def _resume_s(path: Path, url: str) -> float:
    """Return the time from the plan file to the first point that is started."""
    began = time.perf_counter()
    started: list[float] = []

    def emit(event: Event) -> None:
        if isinstance(event, PointStarted):
            started.append(time.perf_counter() - began)

    plan, text = read_plan(path)
    with ProfileStore(url) as store:
        run_campaign(plan, text, store, emit=emit, stopping=lambda: bool(started))
    return started[0]


def _observation(point: Point) -> dict[str, Any]:
    columns = point_columns(point, "campaign large", point.qps)
    return columns | {"engine_version": "1.0", "status": "ok", "ttft_p90_s": 0.1}
