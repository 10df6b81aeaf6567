"""Profiles that are broken, each as a user meets it: one clear line and exit 2."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qplan.cli import main
from qplan.profiles.packs import Card, read_pack, write_pack
from qplan.profiles.store import ProfileStore

ASK = ["capacity", "--qps", "5", "--slo", "ttft=1s", "--model", "llama-2-7b", "--profiles"]
Planned = tuple[object, str, str]
PlanOn = Callable[[Path], Planned]


@pytest.fixture
def planned_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PlanOn:
    """Plan on these profiles; returns what the process would: exit code, output and errors."""

    def plan(profiles: Path) -> Planned:
        monkeypatch.setattr(sys, "argv", ["qplan", *ASK, str(profiles)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return plan


@pytest.fixture
def rows() -> pa.Table:
    table = read_pack("trtllm-composed", models=["llama-2-7b"]).table
    kinds = zip(table["gpu"].to_pylist(), table["quantization"].to_pylist(), strict=True)
    return table.filter(np.array([kind == ("L40S", "BF16") for kind in kinds]))


@pytest.fixture
def pack(tmp_path: Path, rows: pa.Table) -> Path:
    path = tmp_path / "mine.parquet"
    write_pack(path, Card("mine", "mine", "kernel-composed", "none", "test", "2026-01-01"), rows)
    return path


def one_line(planned: Planned) -> str:
    code, out, said = planned
    assert code == 2, said
    assert out == ""
    assert len(said.strip().splitlines()) == 1, said
    return said


def test_a_sound_pack_plans(pack: Path, planned_on: PlanOn) -> None:
    assert planned_on(pack)[0] == 0


def test_a_corrupt_parquet_file(pack: Path, planned_on: PlanOn) -> None:
    whole = pack.read_bytes()
    pack.write_bytes(whole[: len(whole) // 2])
    assert "mine.parquet" in one_line(planned_on(pack))


def test_a_missing_column(pack: Path, rows: pa.Table, planned_on: PlanOn) -> None:
    pq.write_table(rows.drop_columns(["quantization"]), pack)
    assert "quantization" in one_line(planned_on(pack))


def test_latencies_that_are_not_numbers(pack: Path, rows: pa.Table, planned_on: PlanOn) -> None:
    times = rows["step_time_s"].to_numpy(zero_copy_only=False).copy()
    times[3] = np.nan
    at = rows.schema.get_field_index("step_time_s")
    pq.write_table(rows.set_column(at, "step_time_s", pa.array(times)), pack)
    line = one_line(planned_on(pack))
    assert "step_time_s" in line
    assert "nan" in line.casefold()


def test_a_missing_card(pack: Path, planned_on: PlanOn) -> None:
    pack.with_suffix(".json").unlink()
    assert "mine.json" in one_line(planned_on(pack))


def test_a_file_that_is_no_store(tmp_path: Path, planned_on: PlanOn) -> None:
    path = tmp_path / "profiles.db"
    path.write_text("not a database, " * 100)
    assert "profiles.db" in one_line(planned_on(path))


def test_a_store_that_is_not_there(tmp_path: Path, planned_on: PlanOn) -> None:
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
        command = [sys.executable, "-m", "qplan", *ASK, str(path)]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert done.returncode == 0  # readers do not wait for a writer (WAL)
        with (
            ProfileStore(f"sqlite:///{path}", lock_timeout_s=0.2) as store,
            pytest.raises(Exception, match="locked"),
        ):
            store.add(rows.slice(0, 5), source="test", replace=True)
    finally:
        holder.rollback()
        holder.close()
