"""Profile packs: a Parquet file of observations, ``NAME.parquet``, with a JSON card beside it, ``NAME.json``.

Packs ship in this folder; other distributions add theirs through the entry-point group ``qplan.packs``,
each entry a function that returns a folder; and any Parquet file with its card can be read by path.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError, QplanError, StoreError, nearest
from qplan.profiles.arrays import numbers
from qplan.profiles.observations import check_columns, conform, one_line, project
from qplan.profiles.schema import SCHEMA_VERSION, names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import pyarrow as pa

SHIPPED = Path(__file__).parent
ENTRY_POINT_GROUP = "qplan.packs"

_TEXTS = ("name", "title", "provenance", "licence", "made_by", "date")
_COUNTS = ("schema_version", "rows")


@dataclass(frozen=True, slots=True)
class Card:
    """What a reader must know of a pack before trusting its numbers.

    Attributes
    ----------
    provenance
        How the numbers came to be, in the words of the schema.
    licence
        SPDX identifier of the pack's licence.
    made_by
        Command that makes the pack again.
    made_from
        Package, run or page that the numbers come from, any JSON.
    known_error
        How far the numbers were from real ones, any JSON; ``None`` where nobody has measured it.
    rows
        Observations in the Parquet file.
    details
        Every other field of the card.
    """

    name: str
    title: str
    provenance: str
    licence: str
    made_by: str
    date: str
    made_from: Any = None
    notes: tuple[str, ...] = ()
    known_error: Any = None
    schema_version: int = SCHEMA_VERSION
    rows: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Raises
        ------
        StoreError
            The card is missing, is not a JSON object, lacks a field, or is of a newer schema version.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(
                f"{path.with_suffix('.parquet')}: its card {path.name} is missing; a pack is two files"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{path}: not a pack's card: {one_line(error)}") from None
        if not isinstance(fields, dict):
            raise StoreError(f"{path}: not a pack's card: expected a JSON object")
        for name, kind in [*((name, str) for name in _TEXTS), *((name, int) for name in _COUNTS)]:
            if not isinstance(fields.get(name), kind):
                found = f"is {fields[name]!r}" if name in fields else "is missing"
                raise StoreError(f"{path}: field '{name}' {found}; expected {_KINDS[kind]}")
        if fields["schema_version"] > SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema version {fields['schema_version']} is newer than this qplan's "
                f"{SCHEMA_VERSION}; upgrade"
            )
        notes = fields.pop("notes", ())
        known = {name: fields.pop(name) for name in (*_TEXTS, *_COUNTS)}
        return cls(
            **known,
            made_from=fields.pop("made_from", None),
            known_error=fields.pop("known_error", None),
            notes=(notes,) if isinstance(notes, str) else tuple(str(note) for note in notes or ()),
            details=fields,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the card as it is written: every field, the details among them."""
        fields = asdict(self)
        details = fields.pop("details")
        return {**fields, **details}


_KINDS = {str: "text", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class Pack:
    """A card and the observations that were asked for, in the schema's types."""

    card: Card
    table: pa.Table

    @classmethod
    def of_store(cls, store: str, table: pa.Table) -> Pack:
        """Make a pack of what was read from a store, so that both can be planned from and exported alike."""
        kinds: list[str] = []
        if "provenance" in table.column_names:
            kinds = sorted(str(kind) for kind in table["provenance"].unique().to_pylist())
        card = Card(
            name=store,
            title=f"Observations of the profile store {store}",
            provenance=", ".join(kinds),
            licence="not stated",
            made_by=f"qplan profiles export --store {store}",
            date=datetime.now(UTC).date().isoformat(),
            rows=table.num_rows,
        )
        return cls(card, table)


def installed_packs() -> dict[str, Path]:
    """Return the Parquet file of every installed pack by name, the shipped ones first.

    Raises
    ------
    StoreError
        An entry point cannot be loaded.
    """
    packs: dict[str, Path] = {}
    for folder in (SHIPPED, *_plugin_folders()):
        for file in sorted(folder.glob("*.parquet")):
            if not file.name.endswith(".requests.parquet"):  # timestamps beside a pack
                packs.setdefault(file.stem, file)
    return packs


def find_pack(name_or_path: str) -> Path:
    """Return the Parquet file of an installed pack, or the path itself where it names a file.

    Raises
    ------
    InputError
        Neither a pack nor a file has that name.
    """
    shipped = SHIPPED / f"{name_or_path}.parquet"
    if shipped.parent == SHIPPED and shipped.is_file():  # the usual case, without a look at every plugin
        return shipped
    path = Path(name_or_path)
    if path.suffix == ".parquet":
        if path.is_file():
            return path
        raise InputError(f"{path}: no such file")
    packs = installed_packs()
    if name_or_path not in packs:
        known = ", ".join(packs) or "none"
        raise InputError(f"unknown pack '{name_or_path}'; installed: {known}{nearest(name_or_path, packs)}")
    return packs[name_or_path]


def read_pack(
    name_or_path: str | Path,
    models: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    as_stored: bool = False,
) -> Pack:
    """Read a pack.

    Parameters
    ----------
    name_or_path
        Name of an installed pack, or path of its Parquet file.
    models
        Keep only the rows of these models.
    columns
        Columns to return; all by default. Optional columns that the file does not have are null.
    as_stored
        Leave the values of a shipped pack as its file has them, texts as dictionaries and numbers in fewer bits, which
        is several times faster than to convert them to the schema's types.

    Raises
    ------
    InputError
        There is no such pack, a column name is unknown, or the file breaks the schema.
    StoreError
        The file or its card cannot be read, or is of a newer schema version.
    """
    path = find_pack(str(name_or_path))
    wanted = names() if columns is None else tuple(columns)
    check_columns(wanted)
    card = Card.read(path.with_suffix(".json"))
    # What ships is validated by the tests and read in part; anybody else's file is validated whole.
    shipped = path.parent == SHIPPED
    table = _read_parquet(path, card.rows, {*wanted, "model"} if shipped else None)
    if not shipped:
        table = conform(table, str(path))
    if models is not None:
        table = _only_models(table, models)
    if not (as_stored and set(wanted) <= set(table.column_names)):
        table = project(table, wanted)
    return Pack(card, table)


def write_pack(path: Path, card: Card, table: pa.Table) -> Card:
    """Validate observations and write them with their card; each file appears whole or not at all.

    Columns without a value are left out, and so are the folders in the commands that started engines: a pack is for
    others, who have other folders. Returns the card with name, row count and schema version filled in.

    Raises
    ------
    InputError
        The table breaks the schema, or `path` does not end in ``.parquet``.
    StoreError
        A file cannot be written.
    """
    import pyarrow.parquet as pq

    if path.suffix != ".parquet":
        raise InputError(f"{path}: a pack's file name ends in .parquet")
    table = _without_folders(conform(table, str(path)))
    card = replace(card, name=path.stem, rows=table.num_rows, schema_version=SCHEMA_VERSION)
    table = table.select([name for name in names() if table[name].null_count < table.num_rows])
    text = json.dumps(card.to_json(), indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: pq.write_table(table, file, compression="zstd"))
    write_whole(path.with_suffix(".json"), lambda file: Path(file).write_text(text, encoding="utf-8"))
    return card


def _without_folders(table: pa.Table) -> pa.Table:
    """Return `table` with the absolute paths of its commands cut to their last part."""
    import pyarrow as pa

    def cut(command: str) -> str:
        try:
            words = json.loads(command)
        except ValueError:
            return command
        if not isinstance(words, list):
            return command
        return json.dumps([Path(word).name if str(word).startswith("/") and word != "/" else word for word in words])

    place = table.schema.get_field_index("command")
    field = table.schema.field(place)
    commands = [command and cut(command) for command in table["command"].to_pylist()]
    return table.set_column(place, field, pa.array(commands, field.type))


@cache
def _plugin_folders() -> tuple[Path, ...]:
    """Return the folders that other distributions add."""
    from importlib.metadata import entry_points

    folders = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            folders.append(Path(entry.load()()))
        except QplanError:
            raise
        except Exception as error:
            raise StoreError(f"packs of '{entry.name}' ({entry.value}): {one_line(error)}") from error
    return tuple(folders)


def _read_parquet(path: Path, rows: int, columns: set[str] | None) -> pa.Table:
    """Read a Parquet file, or those of the columns that it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != rows:
                raise StoreError(f"{path}: {file.metadata.num_rows} rows, but its card says {rows}")
            there = file.schema_arrow.names
            return file.read(columns=[name for name in there if columns is None or name in columns])
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: not a readable Parquet file: {one_line(error)}") from None


def _only_models(table: pa.Table, models: Collection[str]) -> pa.Table:
    """Keep the rows of `models`, as slices: a pack's rows of a model stand together.

    pyarrow's own filters load its compute functions and, where it is installed, pandas, which takes longer than a plan.
    """
    import pyarrow as pa

    column: Any = table["model"].unify_dictionaries().combine_chunks()
    names = column if not pa.types.is_dictionary(column.type) else column.dictionary
    kept = np.array([name in models for name in names.to_pylist()], dtype=bool)
    if names is not column:
        kept = kept[numbers(column.indices)]
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2)
    return pa.concat_tables([table.slice(0, 0), *(table.slice(start, stop - start) for start, stop in edges)])


def write_whole(path: Path, write: Callable[[str], object]) -> None:
    """Write a file whole or not at all: a temporary one beside `path`, which is then moved there.

    Raises
    ------
    StoreError
        It cannot be written.
    """
    import tempfile

    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        try:
            write(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error.strerror or one_line(error)}") from None
