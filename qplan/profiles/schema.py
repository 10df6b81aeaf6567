"""The columns of an observation, read from ``schema.csv``, and the check that a table obeys them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.core.provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import pyarrow as pa
    import sqlalchemy as sa

SCHEMA_VERSION = 2
"""Version of the columns: packs and stores carry it, and a newer one than this is refused."""

PHASES = ("prefill", "decode", "serving", "saturation", "quality")
STATUSES = ("ok", "oom", "failed", "invalid")
PROVENANCES = tuple(kind.value for kind in Provenance)

CHOICES = {"phase": PHASES, "status": STATUSES, "provenance": PROVENANCES}
PHASE_NEEDS = {
    "prefill": ("input_tokens", "batch"),
    "decode": ("context_tokens", "batch"),
    "serving": (),
    "saturation": ("slo",),
    "quality": ("task", "metric"),
}
QUANTILES = ("p50", "p90", "p95", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2e")
MINIMUM = {
    "tp": 1,
    "batch": 1,
    **dict.fromkeys(("score_change", "score_change_low", "score_change_high"), -float("inf")),
}

_MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an observation.

    Attributes
    ----------
    type
        ``str``, ``int`` or ``float``.
    unit
        Unit of the values, empty for names and counts.
    identity
        Whether the column tells which point was observed, not what was seen there.
    required
        Whether every row has a value.
    """

    name: str
    type: str
    unit: str
    identity: bool
    required: bool
    description: str


@cache
def columns() -> tuple[Column, ...]:
    """Return every column, in the order of ``schema.csv``."""
    text = resources.files("qplan.profiles").joinpath("schema.csv").read_text(encoding="utf-8")
    return tuple(
        Column(
            name=row["name"],
            type=row["type"],
            unit=row["unit"],
            identity=row["identity"] == "yes",
            required=row["required"] == "yes",
            description=row["description"],
        )
        for row in csv.DictReader(text.splitlines())
    )


@cache
def names() -> tuple[str, ...]:
    """Return the names of every column, in order."""
    return tuple(column.name for column in columns())


@cache
def measured_names() -> tuple[str, ...]:
    """Return the columns of which an ``ok`` row has at least one: what was seen, not how long was looked."""
    return tuple(
        column.name
        for column in columns()
        if column.type == "float" and not column.identity and column.name != "duration_s"
    )


@cache
def arrow_schema() -> pa.Schema:
    """Return the columns as a pyarrow schema: ``string``, ``int64`` and ``double``."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    return pa.schema([pa.field(c.name, types[c.type], nullable=not c.required) for c in columns()])


def sql_columns() -> list[sa.Column[object]]:
    """Return the columns as new SQLAlchemy columns, to make a table of."""
    import sqlalchemy as sa

    types = {"str": sa.Text, "int": sa.BigInteger, "float": sa.Double}
    return [sa.Column(c.name, types[c.type](), nullable=not c.required) for c in columns()]


def validate(table: pa.Table, source: str) -> None:
    """Refuse a table of observations that breaks the schema.

    Parameters
    ----------
    table
        Rows as read, of any width; optional columns may be absent.
    source
        File or run that the message names.

    Raises
    ------
    InputError
        One line for each problem, five at most: source, column, first offending row (from 1) and its value.
    """
    problems = list(_column_problems(table)) or list(_value_problems(table))
    if not problems:
        return
    lines = [f"{source}: {problem}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines[-1] += f" (and {len(problems) - _MOST_PROBLEMS} more problems)"
    raise InputError("\n".join(lines))


def _column_problems(table: pa.Table) -> Iterator[str]:
    """Columns that are missing, unknown, twice there or of the wrong type."""
    present = table.column_names
    for name in sorted({name for name in present if present.count(name) > 1}):
        yield f"column '{name}' is there twice"
    for column in columns():
        if column.required and column.name not in present:
            yield f"required column '{column.name}' is missing ({column.description})"
    for name in present:
        if name not in names():
            yield f"unknown column '{name}'{nearest(name, names())}"
    for column in columns():
        if present.count(column.name) == 1 and not _type_fits(table.field(column.name).type, column.type):
            found = table.field(column.name).type
            yield f"column '{column.name}' has type {found}; expected {_TYPE_WORDS[column.type]}"


_TYPE_WORDS = {"str": "text", "int": "whole numbers", "float": "numbers"}


def _type_fits(found: pa.DataType, wanted: str) -> bool:
    """Whether values of a pyarrow type convert to a schema type without loss."""
    import pyarrow as pa

    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        found = found.value_type
    if wanted == "str":
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if wanted == "int":
        return pa.types.is_integer(found)
    return pa.types.is_floating(found) or pa.types.is_integer(found)


def _value_problems(table: pa.Table) -> Iterator[str]:
    """Values that are missing, impossible or contradict each other."""
    present = [column for column in columns() if column.name in table.column_names]
    for column in present:
        yield from _text_problems(table, column) if column.type == "str" else _number_problems(table, column)
    yield from _phase_problems(table)
    for metric in LATENCIES:
        yield from _quantile_problems(table, metric)
    yield from _empty_row_problems(table)


def _text_problems(table: pa.Table, column: Column) -> Iterator[str]:
    """Blank text in a required column, or a word that is none of its choices."""
    # The distinct words are few: only when one of them is wrong are the rows looked at.
    words: list[Any] = table[column.name].unique().to_pylist()
    if column.required and any(word is None or not word.strip() for word in words):
        blank = [not (word or "").strip() for word in table[column.name].to_pylist()]
        yield from _first(f"column '{column.name}' has no value", blank)
    choices = CHOICES.get(column.name, ())
    wrong = {word for word in words if choices and word and word.strip() and word not in choices}
    if wrong:
        values: list[Any] = table[column.name].to_pylist()
        row = next(i for i, value in enumerate(values) if value in wrong)
        yield (
            f"row {row + 1}: unknown {column.name} '{values[row]}'; "
            f"expected one of {', '.join(choices)}{nearest(values[row], choices)}"
        )


def _number_problems(table: pa.Table, column: Column) -> Iterator[str]:
    """Null in a required column, or a number that is not finite or below its minimum."""
    given, numbers = _numbers(table, column.name)
    if column.required:
        yield from _first(f"column '{column.name}' has no value", ~given)
    minimum = MINIMUM.get(column.name, 0)
    finite = np.isfinite(numbers)
    for bad, expected in (
        (~finite & given, "a finite number"),
        (finite & (numbers < minimum), f"at least {minimum}"),
    ):
        for row in np.flatnonzero(bad)[:1]:
            yield f"row {row + 1}: {column.name} is {numbers[row]:g}; expected {expected}"


def _phase_problems(table: pa.Table) -> Iterator[str]:
    """Rows that lack a column which places a point of their phase."""
    phases = np.asarray(table["phase"].to_pylist(), dtype=object)
    for phase, needed in PHASE_NEEDS.items():
        for name in needed:
            bad = (phases == phase) & ~_given(table, name)
            yield from _first(f"column '{name}' has no value, which a {phase} row needs", bad)


def _quantile_problems(table: pa.Table, metric: str) -> Iterator[str]:
    """Percentiles of one metric that fall where they must rise."""
    present = [name for q in QUANTILES if (name := f"{metric}_{q}_s") in table.column_names]
    for lower, upper in combinations(present, 2):
        low, high = _numbers(table, lower)[1], _numbers(table, upper)[1]
        for row in np.flatnonzero(low > high)[:1]:
            yield f"row {row + 1}: {lower} is {low[row]:g}, above {upper}, which is {high[row]:g}"
            return


def _empty_row_problems(table: pa.Table) -> Iterator[str]:
    """Rows with status ok that say nothing about what was seen."""
    empty = np.asarray(table["status"].to_pylist(), dtype=object) == "ok"
    for name in measured_names():
        empty &= ~_given(table, name)
    yield from _first("status is ok but no measurement is given", empty)


def _numbers(table: pa.Table, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Where a numeric column has values, and the values; NaN where it has none."""
    import pyarrow as pa

    return _given(table, name), table[name].cast(pa.float64(), safe=False).to_numpy()


def _given(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    """Where a column has values; nowhere when it is absent."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    given: npt.NDArray[np.bool_] = table[name].is_valid().to_numpy()
    return given


def _first(problem: str, bad: npt.NDArray[Any] | list[bool]) -> Iterator[str]:
    """State a problem once, with the first row that has it and how many more do."""
    rows = np.flatnonzero(bad)
    if rows.size:
        more = f" (and {rows.size - 1} more)" if rows.size > 1 else ""
        yield f"row {rows[0] + 1}{more}: {problem}"
