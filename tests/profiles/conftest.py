"""Observations to put into stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from qplan.profiles.observations import from_rows

Rows = Callable[..., pa.Table]


@pytest.fixture
def serving_row() -> dict[str, Any]:
    """A valid row of a serving run."""
    return {
        "model": "Llama-3.1-8B",
        "quantization": "W4A16",
        "gpu": "H100-SXM5-80GB",
        "tp": 1,
        "engine": "vllm",
        "engine_version": "0.33.0",
        "phase": "serving",
        "workload": "chat",
        "input_tokens": 220.0,
        "output_tokens": 180.0,
        "offered_qps": 4.0,
        "repeat": 0,
        "status": "ok",
        "ttft_p50_s": 0.05,
        "ttft_p99_s": 0.2,
        "achieved_qps": 3.9,
        "provenance": "measured",
        "source": "run-1",
        "measured_on": "2026-11-20",
    }


@pytest.fixture
def rows_at(serving_row: dict[str, Any]) -> Rows:
    """Make a table with one serving row for each offered rate, TTFT scaled by a factor."""

    def make(*rates: float, ttft: float = 1.0, **other: Any) -> pa.Table:
        return from_rows(
            [
                {
                    **serving_row,
                    "offered_qps": rate,
                    "achieved_qps": rate,
                    "ttft_p50_s": 0.05 * ttft,
                    "ttft_p99_s": 0.2 * ttft,
                    **other,
                }
                for rate in rates
            ],
            "made",
        )

    return make
