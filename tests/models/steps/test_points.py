from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qplan.core.errors import InputError, StoreError
from qplan.models.profiled import COLUMNS
from qplan.models.steps.points import StepPoints
from tests.models.steps.made_up import deployment, timed

KEY = {
    "model": "llama-2-7b",
    "quantization": "BF16",
    "gpu": "A100-SXM4-80GB",
    "tp": 2,
    "engine": "trtllm",
    "engine_version": "1",
    "status": "ok",
    "provenance": "simulated",
    "source": "made up",
}
PREFILL = {"phase": "prefill", "batch": 4, "input_tokens": 128.0, "context_tokens": None, "step_time_s": 0.02}
DECODE = {"phase": "decode", "batch": 8, "input_tokens": None, "context_tokens": 1000.0, "step_time_s": 0.01}
FAILED = {**DECODE, "step_time_s": None, "status": "oom"}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{name: {**KEY, **row}[name] for name in COLUMNS} for row in rows])


def test_rows_become_iterations() -> None:
    points = StepPoints.of_table(table(PREFILL, DECODE, FAILED, {**DECODE, "tp": 4}), "here")
    assert [one.tp for one in points.deployments] == [2, 4]
    assert points.index.tolist() == [0, 0, 1]
    assert points.prefill_tokens.tolist() == [512, 0, 0]
    assert points.prompts.tolist() == [4, 1, 1]
    assert points.batch.tolist() == [0, 8, 8]
    assert points.kv_tokens.tolist() == [0, 8000, 8000]
    assert points.time_s.tolist() == [0.02, 0.01, 0.01]


def test_a_table_without_iterations_is_refused() -> None:
    with pytest.raises(StoreError, match="here has no prefill or decode row with status ok"):
        StepPoints.of_table(table(FAILED, {**PREFILL, "phase": "serving"}), "here")


def test_taking_some_keeps_the_deployments() -> None:
    points = timed([deployment(), deployment(tp=2)])
    some = points.take(points.index == 1)
    assert some.deployments == points.deployments
    assert len(some) == len(points) / 2
    assert set(some.index) == {1}


@pytest.mark.parametrize("seconds", [0.0, -1.0, np.nan, np.inf])
def test_times_that_are_none_are_refused(seconds: float) -> None:
    points = timed([deployment()])
    with pytest.raises(InputError, match=re.escape("a time of llama-2-13b BF16 A100-SXM4-80GB x1 is not above 0 s")):
        dataclasses.replace(points, time_s=np.where(np.arange(len(points)) == 3, seconds, points.time_s))


def test_lengths_and_indices_must_agree() -> None:
    points = timed([deployment()])
    with pytest.raises(InputError, match="arrays of lengths"):
        dataclasses.replace(points, batch=points.batch[1:])
    with pytest.raises(InputError, match="not among the 1 deployments"):
        dataclasses.replace(points, index=points.index + 1)
