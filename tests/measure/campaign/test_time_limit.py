"""A campaign with a time limit begins only what fits, and the next call goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qplan.measure.campaign.estimate import OTHER_START_S
from qplan.measure.campaign.events import EngineStarting, PointPutBack


def test_no_engine_is_started_that_would_not_measure_in_time(write_plan: Callable[..., Path], run_plan: Any) -> None:
    """A limit shorter than a start leaves everything to the next call."""
    path = write_plan(loads="[20, 25]")
    run = run_plan(path, limit_s=OTHER_START_S / 2)
    assert (run.ended.done, run.ended.left, run.ended.stopped) == (0, 2, True)
    assert not run.of(EngineStarting)
    again = run_plan(path)
    assert (again.ended.done, again.ended.left, again.ended.stopped) == (2, 0, False)


def test_a_point_that_would_not_end_in_time_is_not_begun(write_plan: Callable[..., Path], run_plan: Any) -> None:
    """The first load is over in a moment; the second would last for minutes and is left."""
    run = run_plan(write_plan(loads="[20, 0.01]"), limit_s=OTHER_START_S + 10)
    assert (run.ended.done, run.ended.left, run.ended.stopped) == (1, 1, True)
    assert not run.of(PointPutBack)
