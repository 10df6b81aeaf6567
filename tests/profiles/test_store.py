from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from qplan.core.errors import InputError, StoreError
from qplan.profiles.observations import identities
from qplan.profiles.schema import SCHEMA_VERSION, arrow_schema
from qplan.profiles.store import Added, ProfileStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    Rows = Callable[..., pa.Table]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is not made yet, of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    found: str = request.getfixturevalue("postgres_url")
    return found


class TestStore:
    """What a store of either kind does."""

    def test_what_is_written_is_read_back(self, url: str, rows_at: Rows) -> None:
        table = rows_at(1.0, 2.5, 1 / 3)
        with ProfileStore(url) as store:
            assert store.add(table) == Added(new=3, unchanged=0, replaced=0)
            found = store.read()
        assert found.schema == arrow_schema()
        assert found.sort_by("offered_qps").equals(table.sort_by("offered_qps"))

    def test_writing_twice_changes_nothing(self, url: str, rows_at: Rows) -> None:
        with ProfileStore(url) as store:
            store.add(rows_at(1.0, 2.0))
            before = store.read()
            assert store.add(rows_at(2.0, 3.0, 3.0)) == Added(new=1, unchanged=1, replaced=0)
            assert store.add(rows_at(1.0, 2.0)) == Added(new=0, unchanged=2, replaced=0)
            assert store.read(offered_qps=[1.0, 2.0]).equals(before)

    def test_other_measurements_of_one_point_are_refused_unless_asked_for(self, url: str, rows_at: Rows) -> None:
        with ProfileStore(url) as store:
            store.add(rows_at(1.0, 2.0))
            with pytest.raises(InputError, match=r"1 of 2 observations differ .*offered_qps=2.*nothing was written"):
                store.add(rows_at(2.0, 3.0, ttft=1.5).slice(0, 2), source="run.json")
            assert store.read().num_rows == 2
            assert store.add(rows_at(2.0, 3.0, ttft=1.5), replace=True) == Added(new=1, unchanged=0, replaced=1)
            assert store.read(["ttft_p99_s"], offered_qps=[2.0]).to_pylist() == [{"ttft_p99_s": 0.2 * 1.5}]

    def test_one_point_with_two_results_in_one_table_is_refused(self, url: str, rows_at: Rows) -> None:
        import pyarrow as pa

        both = pa.concat_tables([rows_at(1.0), rows_at(1.0, ttft=2.0)])
        with (
            ProfileStore(url) as store,
            pytest.raises(InputError, match="run: rows 1 and 2 have one identity"),
        ):
            store.add(both, source="run")

    def test_rows_and_columns_can_be_chosen(self, url: str, rows_at: Rows) -> None:
        with ProfileStore(url) as store:
            store.add(rows_at(1.0))
            store.add(rows_at(1.0, model="Llama-2-7B"))
            assert store.read(["model"], model="Llama-2-7B").to_pylist() == [{"model": "Llama-2-7B"}]
            assert store.read(model="none").num_rows == 0
            assert store.read(phase=("serving", "decode")).num_rows == 2
            assert [(group.model, group.rows) for group in store.summary()] == [
                ("Llama-2-7B", 1),
                ("Llama-3.1-8B", 1),
            ]
            with pytest.raises(InputError, match="unknown column 'modle'; did you mean 'model'"):
                store.read(modle="x")

    def test_reading_makes_no_store(self, url: str) -> None:
        with ProfileStore(url) as store, pytest.raises(StoreError, match="qplan profiles import"):
            store.read()
        if "://" not in url:
            assert not Path(url).exists()

    def test_a_broken_table_is_refused_before_anything_is_made(self, url: str, rows_at: Rows) -> None:
        with ProfileStore(url) as store:
            with pytest.raises(InputError, match="required column 'tp' is missing"):
                store.add(rows_at(1.0).drop_columns(["tp"]))
            with pytest.raises(StoreError):
                store.read()

    def test_progress_counts_every_row(self, url: str, rows_at: Rows) -> None:
        counted: list[int] = []
        with ProfileStore(url) as store:
            store.add(rows_at(*map(float, range(4500))), progress=counted.append)
            assert sum(counted) == 4500 == store.read(["tp"]).num_rows
        assert len(counted) > 1

    def test_an_older_store_gains_the_new_columns_and_keeps_its_rows(self, url: str, rows_at: Rows) -> None:
        table = rows_at(1.0)
        older = [name for name in table.column_names if not name.startswith(("itl_", "energy_", "goodput"))]
        _make_older_store(url, table, older)
        with ProfileStore(url) as store:
            assert store.read().equals(table)
            assert store.add(table).new == 0
            assert store.add(rows_at(2.0, itl_p50_s=0.01)).new == 1
            assert store.read(["itl_p50_s"]).num_rows == 2
        with ProfileStore(url) as store:
            assert store.read().num_rows == 2

    def test_a_newer_store_is_refused_and_left_alone(self, url: str, rows_at: Rows) -> None:
        with ProfileStore(url) as store:
            store.add(rows_at(1.0))
        engine = sa.create_engine(_sqlalchemy_url(url))
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE qplan_meta SET value = '99'"))
        for act in (ProfileStore.read, lambda store: store.add(rows_at(2.0))):
            with ProfileStore(url) as store, pytest.raises(StoreError, match="version 99 is newer"):
                act(store)
        with engine.begin() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM observations")) == 1
        engine.dispose()

    def test_two_processes_write_the_same_rows_at_once(self, url: str, rows_at: Rows, tmp_path: Path) -> None:
        file = tmp_path / "rows.parquet"
        pq.write_table(rows_at(*map(float, range(3000))), file)
        script = f"""
            import sys
            import pyarrow.parquet as pq
            from qplan.profiles.store import ProfileStore
            table = pq.read_table({str(file)!r})
            print("ready", flush=True)
            sys.stdin.readline()
            with ProfileStore({url!r}) as store:
                for start in range(0, 3000, 1000):
                    print(store.add(table.slice(start, 1000)).new, flush=True)
        """
        both = [_start(script) for _ in range(2)]
        for process in both:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        told = [process.communicate("go\n", timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        assert sum(int(line) for out, _ in told for line in out.split()) == 3000
        with ProfileStore(url) as store:
            assert store.read(["tp"]).num_rows == 3000

    def test_a_process_killed_while_it_writes_leaves_nothing(self, url: str, rows_at: Rows, tmp_path: Path) -> None:
        file = tmp_path / "rows.parquet"
        table = rows_at(*map(float, range(5000)))
        pq.write_table(table, file)
        with ProfileStore(url) as store:
            store.add(rows_at(9999.0))
        process = _start(f"""
            import time
            import pyarrow.parquet as pq
            from qplan.profiles.store import ProfileStore
            def stop(rows):
                print("written", rows, flush=True)
                time.sleep(60)
            with ProfileStore({url!r}) as store:
                store.add(pq.read_table({str(file)!r}), progress=stop)
        """)
        assert process.stdout
        assert process.stdout.readline().startswith("written")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        with ProfileStore(url) as store:
            assert store.read(["tp"]).num_rows == 1
            assert store.add(table).new == 5000

    def test_a_store_locked_by_another_is_reported(self, url: str, rows_at: Rows) -> None:
        with ProfileStore(url) as store:
            store.add(rows_at(1.0))
        engine = sa.create_engine(_sqlalchemy_url(url))
        with engine.connect() as other:
            if engine.dialect.name == "sqlite":
                other.exec_driver_sql("BEGIN EXCLUSIVE")
            else:
                other.exec_driver_sql("LOCK TABLE observations IN EXCLUSIVE MODE")
            said = r"locked by another process for more than 0\.1 s"
            with ProfileStore(url, lock_timeout_s=0.1) as store, pytest.raises(StoreError, match=said):
                store.add(rows_at(2.0))
        engine.dispose()


def test_an_older_identity_survives_new_columns(rows_at: Rows) -> None:
    assert identities(rows_at(1.0)) != identities(rows_at(1.0, context_tokens=5.0))
    assert identities(rows_at(1.0)) == identities(rows_at(1.0, driver="560"))


def test_a_file_that_is_no_database_is_named(tmp_path: Path, rows_at: Rows) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are my notes, " * 100)
    for act in (ProfileStore.read, lambda store: store.add(rows_at(1.0))):
        with (
            ProfileStore(str(file)) as store,
            pytest.raises(StoreError, match=r"notes\.db: not a profile store"),
        ):
            act(store)
    assert file.read_text().startswith("these are my notes")


def test_another_applications_database_is_not_read_as_a_store(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE qplan_meta (key TEXT, value TEXT)")
    connection.commit()
    connection.close()
    with ProfileStore(str(file)) as store, pytest.raises(StoreError, match="schema version is not a number"):
        store.read()


def test_a_read_only_store_reads_but_does_not_write(tmp_path: Path, rows_at: Rows) -> None:
    with ProfileStore(str(tmp_path / "store.db")) as store:
        store.add(rows_at(1.0))
    with ProfileStore(f"sqlite:///file:{tmp_path}/store.db?mode=ro&uri=true") as store:
        assert store.read().num_rows == 1
        with pytest.raises(StoreError, match="the file is read-only"):
            store.add(rows_at(2.0))


def test_a_missing_folder_is_explained(tmp_path: Path, rows_at: Rows) -> None:
    with (
        ProfileStore(str(tmp_path / "no" / "store.db")) as store,
        pytest.raises(StoreError, match="is the folder"),
    ):
        store.add(rows_at(1.0))


def test_an_unreachable_server_is_one_line_without_the_password() -> None:
    with ProfileStore("postgresql://me:secret@127.0.0.1:1/db") as store, pytest.raises(StoreError) as caught:
        store.read()
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_names_the_extra() -> None:
    said = r"needs the driver 'pg8000': pip install 'qplan\[postgres\]'"
    with ProfileStore("postgresql+pg8000://me@host/db") as store, pytest.raises(StoreError, match=said):
        store.read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me@host/db", "no store of kind 'mysql'"),
        ("://", "not a path or a database URL"),
        ("pack.parquet", "is a pack's; a store is a file such as profiles.db"),
    ],
)
def test_an_unknown_kind_of_url_is_refused(url: str, message: str) -> None:
    with ProfileStore(url) as store, pytest.raises(StoreError, match=message):
        store.read()


def _sqlalchemy_url(url: str) -> str:
    return url if "://" in url else f"sqlite:///{url}"


def _start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _make_older_store(url: str, table: pa.Table, older: list[str]) -> None:
    """Make the tables as a qplan with fewer columns made them."""
    types = {"string": "TEXT", "int64": "BIGINT", "double": "DOUBLE PRECISION"}
    defined = ", ".join(f"{name} {types[str(table.field(name).type)]}" for name in older)
    [row] = table.select(older).to_pylist()
    from qplan.profiles.observations import contents

    values = {"id": identities(table)[0], "content": contents(table)[0], **row}
    engine = sa.create_engine(_sqlalchemy_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE observations (id VARCHAR(64) PRIMARY KEY, content VARCHAR(64) NOT NULL, {defined})"
        )
        connection.exec_driver_sql("CREATE TABLE qplan_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        connection.exec_driver_sql(f"INSERT INTO qplan_meta VALUES ('schema_version', '{SCHEMA_VERSION - 1}')")
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(sa.text(f"INSERT INTO observations ({', '.join(values)}) VALUES ({marks})"), values)
    engine.dispose()
