"""Profiles that are broken, each as a user meets it: one clear line and exit 2."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qplan.profiles.packs import Card, read_pack, write_pack
from qplan.profiles.store import ProfileStore


def planned_on(profiles: object) -> subprocess.CompletedProcess[str]:
    command = ["capacity", "--qps", "5", "--slo", "ttft=1s", "--model", "llama-2-7b", "--profiles", str(profiles)]
    return subprocess.run([sys.executable, "-m", "qplan", *command], capture_output=True, text=True, timeout=120)


@pytest.fixture
def rows() -> pa.Table:
    table = read_pack("trtllm-composed", models=["llama-2-7b"]).table
    return table.filter(np.array(table["gpu"].to_pylist()) == "L40S")


@pytest.fixture
def pack(tmp_path: Path, rows: pa.Table) -> Path:
    path = tmp_path / "mine.parquet"
    write_pack(path, Card("mine", "mine", "kernel-composed", "none", "test", "2026-01-01"), rows)
    return path


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_a_sound_pack_plans(pack: Path) -> None:
    assert planned_on(pack).returncode == 0


def test_a_corrupt_parquet_file(pack: Path) -> None:
    whole = pack.read_bytes()
    pack.write_bytes(whole[: len(whole) // 2])
    assert "mine.parquet" in one_line(planned_on(pack))


def test_a_missing_column(pack: Path, rows: pa.Table) -> None:
    pq.write_table(rows.drop_columns(["quantization"]), pack)
    assert "quantization" in one_line(planned_on(pack))


def test_latencies_that_are_not_numbers(pack: Path, rows: pa.Table) -> None:
    times = rows["step_time_s"].to_numpy(zero_copy_only=False).copy()
    times[3] = np.nan
    at = rows.schema.get_field_index("step_time_s")
    pq.write_table(rows.set_column(at, "step_time_s", pa.array(times)), pack)
    line = one_line(planned_on(pack))
    assert "step_time_s" in line
    assert "nan" in line.casefold()


def test_a_missing_card(pack: Path) -> None:
    pack.with_suffix(".json").unlink()
    assert "mine.json" in one_line(planned_on(pack))


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "profiles.db"
    path.write_text("not a database, " * 100)
    assert "profiles.db" in one_line(planned_on(path))


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    assert "profiles.db" in one_line(planned_on(tmp_path / "profiles.db"))


def test_a_store_that_another_process_locks_is_read_all_the_same_and_not_written(
    tmp_path: Path, rows: pa.Table
) -> None:
    path = tmp_path / "profiles.db"
    with ProfileStore(f"sqlite:///{path}") as store:
        store.add(rows, source="test")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert planned_on(path).returncode == 0  # readers do not wait for a writer (WAL)
        with (
            ProfileStore(f"sqlite:///{path}", lock_timeout_s=0.2) as store,
            pytest.raises(Exception, match="locked"),
        ):
            store.add(rows.slice(0, 5), source="test", replace=True)
    finally:
        holder.rollback()
        holder.close()
