"""A PostgreSQL database for a test, and observations to put into stores."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from qplan.profiles.observations import from_rows

Rows = Callable[..., pa.Table]


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh database on the server that QPLAN_TEST_POSTGRES names."""
    server = os.environ.get("QPLAN_TEST_POSTGRES")
    if not server:
        pytest.skip("QPLAN_TEST_POSTGRES names no server; .ci/run starts one")
    name = f"qplan_test_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()


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
