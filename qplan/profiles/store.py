"""The profile store: observations in a SQLite file, or in PostgreSQL by URL.

A row's key is a digest of what was observed (:func:`qplan.profiles.observations.identities`), so writing the
same observations twice changes nothing. One writer at a time, readers never wait; each write is one
transaction, so a process that dies in the middle of one leaves nothing of it.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, StoreError
from qplan.profiles.observations import (
    SUMMED_COLUMNS,
    Group,
    check_columns,
    conform,
    contents,
    from_rows,
    identities,
    one_line,
    summarize,
)
from qplan.profiles.schema import SCHEMA_VERSION, arrow_schema, columns, names, sql_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from types import TracebackType

    import pyarrow as pa
    import sqlalchemy as sa

LOCK_TIMEOUT_S = 30.0

_CHUNK_ROWS = 2_000
_LOCK_KEY = 0x71706C616E  # "qplan": the advisory lock under which PostgreSQL tables are made


@dataclass(frozen=True, slots=True)
class Added:
    """What a write did, in observations."""

    new: int
    unchanged: int
    replaced: int


def is_store(name: str) -> bool:
    """Return whether `name` is a store's rather than a pack's: a URL, or a file that is not Parquet."""
    path = Path(name)
    return "://" in name or path.suffix in (".db", ".sqlite") or (path.suffix != ".parquet" and path.is_file())


class ProfileStore:
    """A store of observations; a context manager that closes its connections.

    Parameters
    ----------
    url
        Path of a SQLite file, or a SQLAlchemy URL: ``sqlite:///profiles.db``, ``postgresql://user@host/db``.
    lock_timeout_s
        How long a write waits for another process that writes.

    Notes
    -----
    Nothing is opened until the first call. Reading never makes a store; the first :meth:`add` does. An older
    store gains the columns it lacks when it is first used; one that a newer qplan wrote is refused. Every
    method raises :class:`StoreError` when the store cannot be reached, read or written.
    """

    def __init__(self, url: str, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        if not url.strip():  # which SQLite takes for a database that is gone when it is closed
            raise StoreError("no store is named; expected a file, such as qplan.db, or a URL")
        self.url = url if "://" in url else f"sqlite:///{url}"
        self.lock_timeout_s = lock_timeout_s
        self._engine: sa.Engine | None = None
        self._ready = False

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; the store can be used again."""
        if self._engine is not None:
            self._engine.dispose()
        self._engine, self._ready = None, False

    def add(
        self,
        table: pa.Table,
        *,
        source: str = "observations",
        replace: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> Added:
        """Write observations: all of them or, on any error, none.

        Parameters
        ----------
        table
            Observations; validated first.
        source
            Where they come from, for error messages.
        replace
            Whether an observation whose measurements differ from those kept under the same identity replaces
            them. Else it is refused.
        progress
            Called with the number of rows written since the last call.

        Raises
        ------
        InputError
            The table breaks the schema, holds one identity with two different measurements, or differs from
            what the store keeps and `replace` is false.
        """
        table = conform(table, source)
        ids, digests = identities(table), contents(table)
        rows = _distinct(table, ids, digests, source)
        with self.transaction(write=True) as connection:
            kept = self._kept(connection, [ids[row] for row in rows])
            new = [row for row in rows if ids[row] not in kept]
            changed = [row for row in rows if kept.get(ids[row], digests[row]) != digests[row]]
            if changed and not replace:
                raise InputError(
                    f"{source}: {len(changed)} of {len(rows)} observations differ from those {self} has of "
                    f"the same identity, first {_described(table, changed[0])}; nothing was written: "
                    "--replace overwrites them, another number in 'repeat' keeps both"
                )
            self._delete(connection, [ids[row] for row in changed])
            for start in range(0, len(new) + len(changed), _CHUNK_ROWS):
                chunk = (new + changed)[start : start + _CHUNK_ROWS]
                self._insert(connection, table, chunk, ids, digests)
                if progress is not None:
                    progress(len(chunk))
        return Added(new=len(new), unchanged=len(rows) - len(new) - len(changed), replaced=len(changed))

    def put(self, connection: sa.Connection, rows: Sequence[Mapping[str, object]], *, where: str) -> None:
        """Write what one measurement observed, within a transaction, in place of what it wrote before.

        What the store has with the same `source` column is that measurement's own and goes. Where another source has
        observed the same identity, both are kept: this one takes the next free number of `repeat`. `where` names the
        run in an error.
        """
        import sqlalchemy as sa

        kept, _ = _tables()
        for source in {str(row["source"]) for row in rows}:
            connection.execute(sa.delete(kept).where(kept.c.source == source))
        for row in rows:
            table, key = _single(row, where)
            while self._kept(connection, [key]):
                table, key = _single({**row, "repeat": table["repeat"][0].as_py() + 1}, where)
            self._insert(connection, table, [0], [key], contents(table))

    def read(self, wanted: Sequence[str] | None = None, **only: str | Collection[str | float]) -> pa.Table:
        """Return observations, in a fixed order.

        Parameters
        ----------
        wanted
            Columns to return; all of them by default.
        only
            Column names with the value, or values, that a row must have: ``model="Llama-2-7B"``,
            ``phase=("prefill", "decode")``.

        Raises
        ------
        InputError
            A column name is unknown.
        """
        import pyarrow as pa
        import sqlalchemy as sa

        chosen = names() if wanted is None else tuple(wanted)
        check_columns([*chosen, *only])
        kept, _ = _tables()
        query = sa.select(*(kept.c[name] for name in chosen)).order_by(kept.c.id)
        for name, values in only.items():
            query = query.where(kept.c[name].in_([values] if isinstance(values, str) else list(values)))
        with self.transaction(write=False) as connection:
            rows = connection.execute(query).all()
        schema = pa.schema([arrow_schema().field(name) for name in chosen])
        by_column = zip(*rows, strict=True) if rows else ((),) * len(chosen)
        return pa.table([pa.array(v, f.type) for v, f in zip(by_column, schema, strict=True)], schema=schema)

    def summary(self) -> tuple[Group, ...]:
        """Count the observations by deployment, engine, phase and provenance."""
        return summarize(self.read(SUMMED_COLUMNS))

    def exists(self) -> bool:
        """Return whether the store has been made."""
        import sqlalchemy as sa

        if self._ready:
            return True
        engine = self._engine or self._connect()
        file = engine.url.database if engine.dialect.name == "sqlite" else None
        if file and not file.startswith("file:") and not Path(file).is_file():
            return False
        try:
            with engine.connect() as connection:
                return _state(connection) is not None
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(f"{self}: {self._explained(error)}") from None
        finally:
            if engine is not self._engine:
                engine.dispose()

    def __str__(self) -> str:
        """Print the URL without its password, or the path of a SQLite file."""
        import sqlalchemy as sa

        try:
            url = sa.make_url(self.url)
        except sa.exc.ArgumentError:
            return "the store"
        if url.get_backend_name() == "sqlite" and url.database:
            return url.database
        return url.render_as_string(hide_password=True)

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[sa.Connection]:
        """Open the store if need be and hold a transaction on it; map every database error to one line."""
        import sqlalchemy as sa

        try:
            if self._engine is None:
                self._engine = self._connect()
            if not self._ready:
                self._prepare(self._engine, write=write)
                self._ready = True
            with self._engine.execution_options(qplan_write=write).begin() as connection:
                if write and connection.dialect.name == "postgresql":
                    connection.exec_driver_sql("LOCK TABLE observations IN SHARE ROW EXCLUSIVE MODE")
                yield connection
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(f"{self}: {self._explained(error)}") from None

    def _connect(self) -> sa.Engine:
        """Make the engine; connects to nothing yet."""
        import sqlalchemy as sa

        try:
            url = sa.make_url(self.url)
        except sa.exc.ArgumentError:
            raise StoreError(f"{self.url!r} is not a path or a database URL such as postgresql://…") from None
        backend = url.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise StoreError(f"{self}: no store of kind '{backend}'; expected a SQLite file or postgresql://…")
        if backend == "sqlite" and (url.database or "").endswith(".parquet"):
            raise StoreError(f"{self}: a name that ends in .parquet is a pack's; a store is a file such as profiles.db")
        if backend == "postgresql" and url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        settings = {"timeout": self.lock_timeout_s} if backend == "sqlite" else {"connect_timeout": 10}
        try:
            engine = sa.create_engine(url, connect_args=settings)
        except ImportError as error:
            raise StoreError(f"{self}: needs the driver '{error.name}': pip install 'qplan[postgres]'") from None
        if backend == "sqlite":
            sa.event.listen(engine, "connect", _sqlite_connected)
            sa.event.listen(engine, "begin", _sqlite_begun)
        else:
            sa.event.listen(engine, "begin", self._postgresql_begun)
        return engine

    def _prepare(self, engine: sa.Engine, *, write: bool) -> None:
        """Make the tables of a new store, add the columns that an older one lacks, refuse a newer one."""
        import sqlalchemy as sa

        file = engine.url.database if engine.dialect.name == "sqlite" else None
        if file and not file.startswith("file:") and not write and not Path(file).is_file():
            raise StoreError(f"no profile store at {file}; `qplan measure` and `qplan profiles import` make one")
        with engine.connect() as connection:
            state = _state(connection)
        if state == (SCHEMA_VERSION, ()):
            return
        if state is None and not write:
            raise StoreError(f"{self} holds no profiles; `qplan measure` and `qplan profiles import` put some there")
        if state is not None and state[0] > SCHEMA_VERSION:
            raise StoreError(f"{self}: schema version {state[0]} is newer than this qplan's {SCHEMA_VERSION}; upgrade")
        with engine.execution_options(qplan_write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
            state = _state(connection)  # again, now that no other process can be at it
            if state is None:
                kept, meta = _tables()
                kept.metadata.create_all(connection)
                connection.execute(sa.insert(meta), {"key": "schema_version", "value": str(SCHEMA_VERSION)})
            else:
                _migrate(connection, state[1])

    def _kept(self, connection: sa.Connection, keys: list[str]) -> dict[str, str]:
        """Return the content digest of those keys that the store has."""
        import sqlalchemy as sa

        kept, _ = _tables()
        found: dict[str, str] = {}
        for start in range(0, len(keys), _CHUNK_ROWS):
            chunk = keys[start : start + _CHUNK_ROWS]
            query = sa.select(kept.c.id, kept.c.content)
            if connection.dialect.name == "postgresql":
                # A long IN list on a table without statistics is a scan that compares every pair: seconds a chunk.
                given = sa.func.unnest(sa.literal(chunk, sa.ARRAY(sa.String(64)))).table_valued("id").render_derived()
                query = query.join(given, given.c.id == kept.c.id)
            else:
                query = query.where(kept.c.id.in_(chunk))
            found.update((row.id, row.content) for row in connection.execute(query))
        return found

    def _delete(self, connection: sa.Connection, keys: list[str]) -> None:
        """Take out the rows that are about to be replaced."""
        import sqlalchemy as sa

        kept, _ = _tables()
        if keys:
            query = sa.delete(kept).where(kept.c.id == sa.bindparam("key"))
            connection.execute(query, [{"key": key} for key in keys])

    def _insert(
        self, connection: sa.Connection, table: pa.Table, rows: list[int], ids: list[str], digests: list[str]
    ) -> None:
        """Write the numbered rows of a table."""
        import sqlalchemy as sa

        values = table.take(rows).to_pylist()
        keyed = [{"id": ids[n], "content": digests[n], **row} for n, row in zip(rows, values, strict=True)]
        connection.execute(sa.insert(_tables()[0]), keyed)

    def _explained(self, error: Exception) -> str:
        """Say in one line what a database error means to a user."""
        text = one_line(getattr(error, "orig", None) or error)
        for sign, meaning in (
            ("database is locked", f"locked by another process for more than {self.lock_timeout_s:g} s"),
            ("lock timeout", f"locked by another process for more than {self.lock_timeout_s:g} s"),
            ("file is not a database", "not a profile store (the file is not a SQLite database)"),
            ("readonly database", "the file is read-only"),
            (
                "unable to open database file",
                "cannot open or make the file; is the folder there and writable?",
            ),
            ("database disk image is malformed", "the file is damaged"),
        ):
            if sign in text:
                return meaning
        return text

    def _postgresql_begun(self, connection: sa.Connection) -> None:
        """Bound the wait for another writer."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(self.lock_timeout_s * 1000)}")


@cache
def _tables() -> tuple[sa.Table, sa.Table]:
    """Return the tables of a store: the observations, and the schema version."""
    import sqlalchemy as sa

    together = sa.MetaData()
    observations = sa.Table(
        "observations",
        together,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("content", sa.String(64), nullable=False),
        *sql_columns(),
    )
    meta = sa.Table(
        "qplan_meta",
        together,
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    return observations, meta


def meta_table() -> sa.Table:
    """Return the table of a store's versions: what else is kept in a store notes its own there."""
    return _tables()[1]


def _single(row: Mapping[str, object], where: str) -> tuple[pa.Table, str]:
    """Make a table of one observation; return it with its key."""
    table = from_rows([row], where)
    return table, identities(table)[0]


def _state(connection: sa.Connection) -> tuple[int, tuple[str, ...]] | None:
    """Return a store's schema version and the columns it lacks; ``None`` before it is made."""
    import sqlalchemy as sa

    inspector = sa.inspect(connection)
    if not inspector.has_table("qplan_meta"):
        return None
    _, meta = _tables()
    version = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "schema_version"))
    if not str(version).isdecimal():
        raise StoreError("not a profile store: its schema version is not a number")
    there = {column["name"] for column in inspector.get_columns("observations")}
    return int(str(version)), tuple(column.name for column in columns() if column.name not in there)


def _migrate(connection: sa.Connection, lacking: tuple[str, ...]) -> None:
    """Add the columns that an older store lacks; nothing is known of them there, so they are null."""
    import sqlalchemy as sa

    kept, meta = _tables()
    for name in lacking:
        kind = kept.c[name].type.compile(connection.dialect)
        connection.exec_driver_sql(f'ALTER TABLE observations ADD COLUMN "{name}" {kind}')
    connection.execute(sa.update(meta).where(meta.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))


def _distinct(table: pa.Table, ids: list[str], digests: list[str], source: str) -> list[int]:
    """Return the rows to write: exact repetitions collapse, contradictions are refused."""
    first: dict[str, int] = {}
    for row, key in enumerate(ids):
        if digests[first.setdefault(key, row)] != digests[row]:
            raise InputError(
                f"{source}: rows {first[key] + 1} and {row + 1} have one identity ({_described(table, row)}) "
                "but different measurements; number repetitions in the column 'repeat'"
            )
    return list(first.values())


def _described(table: pa.Table, row: int) -> str:
    """Name an observation by the identity columns that it has, the engine left out."""
    values = {c.name: table[c.name][row].as_py() for c in columns() if c.identity and "engine" not in c.name}
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def _sqlite_connected(connection: Any, _record: object) -> None:
    """Take transactions into our own hands, and let readers work while one process writes."""
    connection.isolation_level = None
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error:
        connection.close()  # nobody else has it yet
        raise


def _sqlite_begun(connection: sa.Connection) -> None:
    """Take SQLite's write lock at once where a write follows, so that what was read stays true."""
    writes = connection.get_execution_options().get("qplan_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
