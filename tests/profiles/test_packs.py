from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qplan.core.errors import InputError, QplanError, StoreError
from qplan.profiles.observations import conform
from qplan.profiles.packs import Card, Pack, find_pack, installed_packs, read_pack, write_pack
from qplan.profiles.schema import SCHEMA_VERSION, arrow_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Rows = Callable[..., pa.Table]

CARD = Card(
    name="",
    title="Two models on one GPU",
    provenance="measured",
    licence="Apache-2.0",
    made_by="qplan profiles export two.parquet",
    date="2026-11-20",
    made_from={"run": "a"},
    notes=("made for a test",),
    known_error={"tpot": 0.1},
    details={"engines": {"vllm": "0.33.0"}},
)


@pytest.fixture
def file(tmp_path: Path, rows_at: Rows) -> Path:
    """A pack of three rows and two models."""
    path = tmp_path / "two.parquet"
    table = pa.concat_tables([rows_at(1.0, 2.0), rows_at(1.0, model="Llama-2-7B")])
    write_pack(path, CARD, table)
    return path


def test_a_pack_is_read_back(file: Path, rows_at: Rows) -> None:
    pack = read_pack(file)
    assert pack.table.schema == arrow_schema()
    assert pack.table.slice(0, 2).equals(rows_at(1.0, 2.0))
    assert pack.card.name == "two"
    assert (pack.card.rows, pack.card.schema_version) == (3, SCHEMA_VERSION)
    assert (pack.card.known_error, pack.card.made_from) == ({"tpot": 0.1}, {"run": "a"})
    assert pack.card.notes == ("made for a test",)
    assert pack.card.details == {"engines": {"vllm": "0.33.0"}}


def test_columns_without_a_value_take_no_room_in_the_file(file: Path) -> None:
    assert "energy_j" not in pq.read_schema(file).names
    assert read_pack(file).table["energy_j"].null_count == 3


def test_folders_of_the_machine_that_measured_stay_there(tmp_path: Path, rows_at: Rows) -> None:
    table = rows_at(1.0, 2.0, 3.0)
    commands = [json.dumps(["/home/me/bin/python", "--model", "/data/w.gguf", "--route", "/"]), "by hand", None]
    place = table.schema.get_field_index("command")
    table = table.set_column(place, table.schema.field(place), pa.array(commands, table.schema.field(place).type))
    write_pack(tmp_path / "ours.parquet", CARD, table)
    written = read_pack(tmp_path / "ours.parquet").table["command"].to_pylist()
    assert written == [json.dumps(["python", "--model", "w.gguf", "--route", "/"]), "by hand", None]


def test_rows_of_a_model_need_not_stand_together(tmp_path: Path, rows_at: Rows) -> None:
    pieces = [rows_at(float(n), model=f"model-{n % 3}") for n in range(1, 10)]
    write_pack(tmp_path / "mixed.parquet", CARD, pa.concat_tables(pieces))
    found = read_pack(tmp_path / "mixed.parquet", models=["model-0", "model-2"], columns=["offered_qps"])
    assert found.table["offered_qps"].to_pylist() == [2.0, 3.0, 5.0, 6.0, 8.0, 9.0]


def test_a_shipped_pack_as_stored_says_the_same() -> None:
    columns = ("model", "quantization", "tp", "phase", "input_tokens", "step_time_s")
    plain = read_pack("trtllm-composed", ["llama-2-7b"], columns).table
    stored = read_pack("trtllm-composed", ["llama-2-7b"], columns, as_stored=True).table
    assert pa.types.is_dictionary(stored.schema.field("phase").type)
    assert {name: stored[name].to_pylist() for name in columns} == {name: plain[name].to_pylist() for name in columns}


def test_models_and_columns_can_be_chosen(file: Path) -> None:
    pack = read_pack(file, models=["Llama-2-7B"], columns=["offered_qps", "itl_p50_s"])
    assert pack.table.to_pylist() == [{"offered_qps": 1.0, "itl_p50_s": None}]
    assert read_pack(file, models=[]).table.num_rows == 0
    with pytest.raises(InputError, match="unknown column 'offered'"):
        read_pack(file, columns=["offered"])


def test_files_are_replaced_whole(file: Path, rows_at: Rows) -> None:
    write_pack(file, CARD, rows_at(7.0))
    assert read_pack(file).table.num_rows == 1
    with pytest.raises(InputError, match="tp is 0"):
        write_pack(file, CARD, rows_at(7.0).set_column(3, "tp", pa.array([0])))
    assert read_pack(file).card.rows == 1
    assert sorted(path.name for path in file.parent.iterdir()) == ["two.json", "two.parquet"]


def test_a_pack_cannot_be_written_just_anywhere(tmp_path: Path, rows_at: Rows) -> None:
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        write_pack(tmp_path / "x.csv", CARD, rows_at(1.0))
    with pytest.raises(StoreError, match="cannot write: No such file or directory"):
        write_pack(tmp_path / "no" / "x.parquet", CARD, rows_at(1.0))


def test_a_missing_card_is_explained(file: Path) -> None:
    file.with_suffix(".json").unlink()
    with pytest.raises(StoreError, match=r"its card two\.json is missing; a pack is two files"):
        read_pack(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": None}, "field 'licence' is None; expected text"),
        ({"rows": "3"}, "field 'rows' is '3'; expected a whole number"),
        ({"rows": 4}, "3 rows, but its card says 4"),
        ({"schema_version": SCHEMA_VERSION + 1}, "is newer than this qplan's"),
    ],
)
def test_a_wrong_card_is_refused(file: Path, change: dict[str, Any], message: str) -> None:
    card = file.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **change}))
    with pytest.raises(StoreError) as caught:
        read_pack(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00", "[" * 100_000])
def test_a_card_that_is_no_json_object_is_refused(file: Path, text: str) -> None:
    file.with_suffix(".json").write_text(text)
    with pytest.raises(StoreError, match="not a pack's card"):
        read_pack(file)


def test_a_pack_that_breaks_the_schema_is_refused_by_column(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["gpu"]), file)
    with pytest.raises(InputError, match=r"two\.parquet: required column 'gpu' is missing"):
        read_pack(file, columns=["model"])
    nan = pa.array([0.1, float("nan"), 0.1])
    pq.write_table(table.set_column(table.column_names.index("ttft_p99_s"), "ttft_p99_s", nan), file)
    with pytest.raises(InputError, match="row 2: ttft_p99_s is nan"):
        read_pack(file)


def test_text_is_no_parquet(file: Path) -> None:
    file.write_text("model,gpu\n")
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        read_pack(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_no_damaged_file_ends_in_a_traceback(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = file.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.integers(0, 64))
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(good[:at] + data.draw(st.binary(max_size=64)) + good[at + cut :])
    damaged.with_suffix(".json").write_text(file.with_suffix(".json").read_text())
    with contextlib.suppress(QplanError):
        assert read_pack(damaged).table.schema == arrow_schema()


def test_an_unknown_pack_is_answered_with_what_there_is() -> None:
    with pytest.raises(InputError, match="unknown pack 'nonesuch'; installed: "):
        read_pack("nonesuch")
    with pytest.raises(InputError, match=r"away\.parquet: no such file"):
        find_pack("away.parquet")


def test_what_a_store_gave_is_a_pack(rows_at: Rows) -> None:
    pack = Pack.of_store("ours.db", rows_at(1.0))
    assert (pack.card.provenance, pack.card.rows, pack.card.known_error) == ("measured", 1, None)


@pytest.mark.parametrize("name", sorted(installed_packs()))
def test_shipped_packs_obey_the_schema(name: str) -> None:
    path = installed_packs()[name]
    card = Card.read(path.with_suffix(".json"))
    table = pq.read_table(path)
    assert card.name == name
    assert card.rows == table.num_rows
    assert set(conform(table, name)["provenance"].unique().to_pylist()) == {card.provenance}
    assert read_pack(name).table.equals(conform(table, name))
