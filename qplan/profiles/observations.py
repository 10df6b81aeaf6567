"""Tables of observations: made from rows, brought to the schema's types, identified, summed up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, nearest
from qplan.profiles.schema import arrow_schema, columns, names, validate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

GROUP_COLUMNS = ("model", "quantization", "gpu", "tp", "engine", "engine_version", "phase", "provenance")
SUMMED_COLUMNS = (*GROUP_COLUMNS, "status", "measured_on")


@dataclass(frozen=True, slots=True)
class Group:
    """How many observations there are of one deployment, engine, phase and provenance.

    Attributes
    ----------
    rows, ok
        Observations, and those of them with status ``ok``.
    first_day, last_day
        First and last day of measurement, ISO 8601, where known.
    """

    model: str
    quantization: str
    gpu: str
    tp: int
    engine: str
    engine_version: str
    phase: str
    provenance: str
    rows: int
    ok: int
    first_day: str | None
    last_day: str | None


def from_rows(rows: Sequence[Mapping[str, object]], source: str) -> pa.Table:
    """Make a validated table of rows that map column names to values; absent means null.

    Raises
    ------
    InputError
        A value has the wrong type, or the rows break the schema; the message names `source`.
    """
    import pyarrow as pa

    unknown = sorted({name for row in rows for name in row} - set(names()))
    if unknown:
        raise InputError(f"{source}: unknown column '{unknown[0]}'{nearest(unknown[0], names())}")
    arrays = []
    for field in arrow_schema():
        values = [row.get(field.name) for row in rows]
        try:
            arrays.append(pa.array(values, type=field.type))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise InputError(f"{source}: column '{field.name}': {one_line(error)}") from None
    return conform(pa.table(arrays, schema=arrow_schema()), source)


def conform(table: pa.Table, source: str) -> pa.Table:
    """Validate a table as read and return it with every column of the schema, in order and type.

    Raises
    ------
    InputError
        The table breaks the schema; the message names `source`.
    """
    validate(table, source)
    return project(table, names())


def project(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """Return the `wanted` columns of a valid table in the schema's types; an absent column is null."""
    import pyarrow as pa

    schema = pa.schema([arrow_schema().field(name) for name in wanted])
    arrays = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def check_columns(wanted: Iterable[str]) -> None:
    """Refuse a column name that the schema does not have."""
    for name in wanted:
        if name not in names():
            raise InputError(f"unknown column '{name}'{nearest(name, names())}")


def identities(table: pa.Table) -> list[str]:
    """Return the identity of each row: a digest of the columns that tell which point was observed.

    Only the columns that have a value take part, each with its name, so that a column added to the schema
    later leaves the identity of older observations as it was.
    """
    return _digests(table, [column.name for column in columns() if column.identity])


def contents(table: pa.Table) -> list[str]:
    """Return a digest of what was seen in each row: two rows of one identity and one content are the same."""
    return _digests(table, [column.name for column in columns() if not column.identity])


def summarize(table: pa.Table) -> tuple[Group, ...]:
    """Count the observations of each deployment, engine, phase and provenance, in that order."""
    groups: dict[tuple[Any, ...], list[tuple[Any, Any]]] = {}
    *keys, statuses, days = (table[name].to_pylist() for name in SUMMED_COLUMNS)
    for key, status, day in zip(zip(*keys, strict=True), statuses, days, strict=True):
        groups.setdefault(key, []).append((status, day))
    return tuple(
        Group(
            **dict(zip(GROUP_COLUMNS, key, strict=True)),
            rows=len(seen),
            ok=sum(status == "ok" for status, _ in seen),
            first_day=min((day for _, day in seen if day), default=None),
            last_day=max((day for _, day in seen if day), default=None),
        )
        for key, seen in sorted(groups.items())
    )


def _digests(table: pa.Table, of: Iterable[str]) -> list[str]:
    """SHA-256 of ``name=value`` lines, sorted by name, nulls left out."""
    pairs = [_spelled(name, table[name].to_pylist()) for name in sorted(of)]
    return [hashlib.sha256("".join(row).encode()).hexdigest() for row in zip(*pairs, strict=True)]


def _spelled(name: str, values: list[Any]) -> list[str]:
    """Write each value so that equal values, and only they, read the same."""
    # repr tells text from numbers, escapes line ends and prints every bit of a float; -0.0 is spelled as 0.0.
    plain = {v: v + 0.0 if isinstance(v, float) else v for v in set(values)}
    spelled = {value: f"{name}={word!r}\n" for value, word in plain.items()}
    spelled[None] = ""
    return [spelled[value] for value in values]


def one_line(error: Exception) -> str:
    """Print the message of a foreign error without its line breaks."""
    return " ".join(str(error).split())
