from __future__ import annotations

import contextlib
import hashlib
import math
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.profiles.observations import conform, contents, from_rows, identities, project, summarize
from qplan.profiles.schema import arrow_schema, columns, names, sql_columns, validate


def table_of(row: dict[str, Any], *more: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([row, *({**row, **other} for other in more)])


def test_arrow_and_sql_follow_the_csv() -> None:
    assert arrow_schema().names == list(names())
    made = {column.name: column for column in sql_columns()}
    assert list(made) == list(names())
    for column in columns():
        assert made[column.name].nullable is not column.required
        assert arrow_schema().field(column.name).nullable is not column.required
    assert arrow_schema().field("ttft_p99_s").type == pa.float64()
    assert arrow_schema().field("tp").type == pa.int64()
    assert isinstance(made["step_time_s"].type, sa.Double)


def test_every_column_has_a_known_type_and_says_what_it_means() -> None:
    assert {column.type for column in columns()} == {"str", "int", "float"}
    assert all(column.description for column in columns())
    for column in columns():  # the unit is in the name
        for suffix, unit in (("_s", "s"), ("_bytes", "bytes"), ("_j", "J"), ("_w", "W"), ("_qps", "1/s")):
            if column.name.endswith(suffix) and not column.name.endswith("per_s"):
                assert column.unit == unit, column.name


def test_a_valid_row_passes_and_gains_the_columns_it_lacks(serving_row: dict[str, Any]) -> None:
    table = conform(table_of(serving_row), "x")
    assert table.schema == arrow_schema()
    assert table["step_time_s"].null_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "row 2: column 'model' has no value"),
        ({"model": "  "}, "row 2: column 'model' has no value"),
        ({"tp": None}, "row 2: column 'tp' has no value"),
        ({"tp": 0}, "row 2: tp is 0; expected at least 1"),
        ({"offered_qps": -1.0}, "row 2: offered_qps is -1; expected at least 0"),
        ({"ttft_p99_s": math.nan}, "row 2: ttft_p99_s is nan; expected a finite number"),
        ({"achieved_qps": math.inf}, "row 2: achieved_qps is inf; expected a finite number"),
        ({"phase": "servin"}, "row 2: unknown phase 'servin'; expected one of prefill, decode, serving"),
        ({"status": "OK!"}, "row 2: unknown status 'OK!'"),
        ({"provenance": "guessed"}, "row 2: unknown provenance 'guessed'"),
        ({"ttft_p50_s": 0.3}, "row 2: ttft_p50_s is 0.3, above ttft_p99_s, which is 0.2"),
        (
            {"ttft_p50_s": None, "ttft_p99_s": None, "achieved_qps": None},
            "row 2: status is ok but no measurement is given",
        ),
        ({"phase": "decode"}, "row 2: column 'context_tokens' has no value, which a decode row needs"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(serving_row: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(table_of(serving_row, change), "pack.parquet")
    assert f"pack.parquet: {message}" in str(caught.value)


def test_wrong_columns_are_named_before_values(serving_row: dict[str, Any]) -> None:
    row = {**serving_row, "ttft_p9_s": 1.0, "tp": "one"}
    del row["source"]
    with pytest.raises(InputError) as caught:
        validate(table_of(row), "x")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "required column 'source' is missing" in lines[0]
    assert "unknown column 'ttft_p9_s'; did you mean 'ttft_p99_s'?" in lines[1]
    assert "column 'tp' has type string; expected whole numbers" in lines[2]


def test_at_most_a_handful_of_problems_is_listed(serving_row: dict[str, Any]) -> None:
    broken = dict.fromkeys(("model", "quantization", "gpu", "tp", "engine", "repeat", "source"))
    with pytest.raises(InputError) as caught:
        validate(table_of(serving_row, broken), "x")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith("(and 2 more problems)")


def test_a_failed_row_needs_no_measurement(serving_row: dict[str, Any]) -> None:
    bare = {"status": "oom", "reason": "CUDA out of memory", "ttft_p50_s": None, "ttft_p99_s": None}
    validate(table_of(serving_row, {**bare, "achieved_qps": None}), "x")


def test_narrower_types_convert(serving_row: dict[str, Any]) -> None:
    table = table_of(serving_row)
    at = table.column_names.index
    table = table.set_column(at("model"), "model", table["model"].dictionary_encode())
    table = table.set_column(at("tp"), "tp", pa.array([1], pa.int8()))
    table = table.set_column(at("offered_qps"), "offered_qps", pa.array([4], pa.int32()))
    assert conform(table, "x").schema == arrow_schema()
    assert project(table, ["model", "itl_p50_s"]).to_pylist() == [{"model": "Llama-3.1-8B", "itl_p50_s": None}]


def test_identity_is_what_was_observed_and_content_what_was_seen(serving_row: dict[str, Any]) -> None:
    other_result = {"ttft_p99_s": 0.21}
    other_point = {"offered_qps": 5.0}
    table = conform(table_of(serving_row, other_result, other_point), "x")
    same, result, point = identities(table)
    assert same == result != point
    first, second, _ = contents(table)
    assert first != second


def test_identity_is_stable() -> None:
    # Stores keep these digests: a change here would make every stored observation look new.
    row = {"model": "m", "quantization": "BF16", "gpu": "g", "tp": 2, "engine": "e", "engine_version": "1"}
    row |= {"phase": "prefill", "input_tokens": 512.0, "batch": 1, "repeat": 0, "status": "oom"}
    table = from_rows([{**row, "provenance": "measured", "source": "s"}], "x")
    lines = "batch=1\nengine='e'\nengine_version='1'\ngpu='g'\ninput_tokens=512.0\nmodel='m'\nphase='prefill'\n"
    lines += "quantization='BF16'\nrepeat=0\ntp=2\n"
    assert identities(table) == [hashlib.sha256(lines.encode()).hexdigest()]
    zeros = [
        from_rows([{**row, "input_tokens": zero, "provenance": "measured", "source": "s"}], "x") for zero in (0.0, -0.0)
    ]
    assert identities(zeros[0]) == identities(zeros[1])


def test_groups_are_counted(serving_row: dict[str, Any]) -> None:
    failed = {"status": "failed", "measured_on": "2026-11-18"}
    groups = summarize(conform(table_of(serving_row, failed, {"tp": 2, "measured_on": None}), "x"))
    assert [(group.tp, group.rows, group.ok) for group in groups] == [(1, 2, 1), (2, 1, 1)]
    assert (groups[0].first_day, groups[0].last_day) == ("2026-11-18", "2026-11-20")
    assert groups[1].first_day is None


def test_from_rows_says_which_column_has_a_wrong_type(serving_row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="run: column 'tp'"):
        from_rows([{**serving_row, "tp": "two"}], "run")
    with pytest.raises(InputError, match="unknown column 'ttft'"):
        from_rows([{**serving_row, "ttft": 1.0}], "run")


_ANY = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=8), st.booleans())


@given(change=st.dictionaries(st.one_of(st.sampled_from(names()), st.text(max_size=5)), _ANY, max_size=6))
def test_nothing_but_input_errors_escapes(change: dict[str, Any]) -> None:
    row = {"model": "m", "quantization": "BF16", "gpu": "g", "tp": 1, "engine": "e", "engine_version": "1"}
    row |= {"phase": "serving", "repeat": 0, "status": "ok", "provenance": "measured", "source": "s"}
    try:
        table = pa.Table.from_pylist([{**row, **change}])
    except (
        pa.ArrowInvalid,
        OverflowError,
    ):  # no table at all: an integer beyond 64 bits, or a lone surrogate
        return
    with contextlib.suppress(InputError):
        assert conform(table, "x").schema == arrow_schema()
