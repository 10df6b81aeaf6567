"""Where output goes: JSON or a console."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.table import Table


_PIPED_WIDTH = 160  # of what goes to a file or a pipe, where nothing says how wide it may be


def print_json(document: Mapping[str, Any]) -> None:
    """Write `document` to standard output as JSON; what is not finite becomes null, which JSON can say."""
    json.dump(_finite(document), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


class EventLog:
    """Writes events as lines of JSON: their kind, the seconds since the log began, and their fields."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def write(self, event: object, fields: Mapping[str, Any]) -> None:
        """Write a line at once, since others follow along."""
        at_s = round(time.perf_counter() - self._began, 3)
        line = {"event": type(event).__name__, "at_s": at_s, **fields}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain table as :func:`plain_table` makes it."""
    console().print(plain_table(header, rows))


def plain_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a plain table; text is taken as it is, not as markup, and numbers go to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    cells = [tuple(row) for row in rows]
    for column, name in enumerate(header):
        numeric = all(isinstance(row[column], int | float) for row in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def facts_table() -> Table:
    """Return an empty table for rows of a name and a text; text is taken as markup."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table


def console() -> Console:
    """Return a console on standard output; piped output is wide enough that no table is cut."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on standard error, where that is a terminal, that `what` is being done, and for how long; then wipe it."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
