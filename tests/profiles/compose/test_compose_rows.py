"""From grids to rows: every point that fits and no other, one row for what does not, and a card that counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from qplan.core.errors import StoreError
from qplan.core.units import GIB
from qplan.profiles.compose import pack
from qplan.profiles.compose.card import card
from qplan.profiles.compose.request import (
    DECODE_BATCHES,
    DECODE_CONTEXTS,
    PREFILL_BATCHES,
    PREFILL_TOKENS,
    SYSTEMS,
    Candidate,
    candidates,
)
from qplan.profiles.compose.rows import Composed, compose
from qplan.profiles.schema import validate

if TYPE_CHECKING:
    from pathlib import Path

CANDIDATES = candidates(SYSTEMS[0])[:3]
WEIGHTS = np.array([20, 30, 90]) * GIB


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Three deployments on 80 GiB: KV caches of 1 MiB a token, and the third too large."""
    prefill = np.multiply.outer(PREFILL_BATCHES, PREFILL_TOKENS).astype(float)
    decode = np.multiply.outer(DECODE_BATCHES, DECODE_CONTEXTS).astype(float)
    outside = prefill > 16384
    prefill_s = np.where(outside, np.nan, 0.01 + prefill * 1e-5)
    prefill_bytes = WEIGHTS[:, None, None] + np.where(outside, np.nan, prefill) * 2**20
    return {
        "prefill_s": np.stack([prefill_s] * 3),
        "prefill_bytes": prefill_bytes,
        "decode_s": np.stack([0.01 + decode * 1e-7] * 3),
        "decode_bytes": WEIGHTS[:, None, None] + decode * 2**20,
        "weights_bytes": WEIGHTS.astype(float),
        "reserve_bytes": np.full(3, 3.5 * GIB),
        "capacity_bytes": np.array(80.0 * GIB),
    }


@pytest.fixture
def composed(arrays: dict[str, np.ndarray]) -> Composed:
    return compose(CANDIDATES, arrays)


def test_rows_are_the_points_that_fit(composed: Composed, arrays: dict[str, np.ndarray]) -> None:
    validate(composed.rows, "rows")
    rows = [row for row in composed.rows.to_pylist() if row["status"] == "ok"]
    expected = {
        (CANDIDATES[d].tp, phase, batch, float(length))
        for d in (0, 1)
        for phase, batches, lengths in (
            ("prefill", PREFILL_BATCHES, PREFILL_TOKENS),
            ("decode", DECODE_BATCHES, DECODE_CONTEXTS),
        )
        for batch in batches
        for length in lengths
        if batch * length <= (16384 if phase == "prefill" else np.inf)
        if WEIGHTS[d] + batch * length * 2**20 <= 80 * GIB
    }
    found = {(r["tp"], r["phase"], r["batch"], r["input_tokens"] or r["context_tokens"]) for r in rows}
    assert found == expected
    assert len(rows) == len(expected)
    for row in rows:
        tokens = row["batch"] * (row["input_tokens"] or row["context_tokens"])
        per_token = 1e-5 if row["phase"] == "prefill" else 1e-7
        assert row["step_time_s"] == pytest.approx(0.01 + tokens * per_token, rel=1e-6)
        assert row["memory_bytes"] == WEIGHTS[CANDIDATES.index(_candidate(row))] + tokens * 2**20
        assert (row["provenance"], row["engine"], row["engine_version"]) == ("kernel-composed", "trtllm", "1.0.0")
        assert row["source"] == "aiconfigurator 0.6.0, a100_sxm, trtllm 1.0.0 tables"


def _candidate(row: dict[str, Any]) -> Candidate:
    return next(c for c in CANDIDATES if c.tp == row["tp"])


def test_what_does_not_fit_has_one_row_with_the_numbers(composed: Composed) -> None:
    (row,) = [row for row in composed.rows.to_pylist() if row["status"] == "oom"]
    assert (row["model"], row["quantization"], row["tp"]) == ("llama-2-7b", "BF16", 4)
    assert row["reason"] == "90.0 GiB of weights and 3.5 GiB of runtime on each GPU, which has 80.0 GiB"
    assert row["step_time_s"] is None
    assert composed.oom == ("llama-2-7b BF16 x4",)


def test_files_hold_the_rows_and_are_the_same_again(composed: Composed, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        with pack.staging(tmp_path / name) as stage:
            files.append(pack.write([composed], "2026-01-02", stage, tmp_path / name))
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "trtllm-composed.json",
            "trtllm-composed.parquet",
        ]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    table = pq.read_table(files[0][0])
    validate(table, "pack")
    assert table.num_rows == composed.rows.num_rows
    for name in table.column_names:
        assert table[name].to_pylist() == composed.rows[name].to_pylist()


def test_card_counts_the_rows(composed: Composed) -> None:
    made = card([composed], "2026-01-02")
    assert made["rows"] == made["gpus"]["A100-SXM4-80GB"]["rows"] == composed.rows.num_rows
    assert (made["deployments"], made["oom_deployments"], made["known_error"]) == (3, 1, None)
    assert made["gpus"]["A100-SXM4-80GB"]["repaired"]["decode"]["changed"] == 0


def test_interrupted_writing_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "trtllm-composed.json").write_text("old")
    staged = []

    def interrupted() -> None:
        with pack.staging(tmp_path) as stage:
            staged.append(stage / "trtllm-composed.parquet")
            staged[0].write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not staged[0].exists()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("trtllm-composed.json", "old")]


def test_a_file_is_no_folder_for_the_pack(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with (
        pytest.raises(StoreError, match=r"--out .*file: cannot write there: .*; expected a folder"),
        pack.staging(file),
    ):
        pass
