"""The files of the pack: rows as Parquet, and the card as JSON beside them."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.errors import StoreError
from qplan.profiles.compose.card import NAME, card

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from qplan.profiles.compose.rows import Composed

_MEASURED = ("step_time_s", "memory_bytes")


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Make the folder `out`, and yield a folder in it that is gone afterwards.

    Raises
    ------
    StoreError
        `out` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out, prefix=f".{NAME}-")
    except OSError as error:
        raise StoreError(f"--out {out}: cannot write there: {error.strerror}; expected a folder") from None
    with folder:
        yield Path(folder.name)


def write(parts: Sequence[Composed], date: str, stage: Path, out: Path) -> tuple[Path, Path]:
    """Write the pack into the folder `stage`, move it into `out` when it is whole, and return its two paths.

    Raises
    ------
    StoreError
        The files cannot be written, as on a full disk.
    """
    import pyarrow as pa

    files = stage / f"{NAME}.parquet", stage / f"{NAME}.json"
    try:
        _write_parquet(pa.concat_tables([part.rows for part in parts]), files[0])
        text = json.dumps(card(parts, date), indent=2, ensure_ascii=False) + "\n"
        files[1].write_text(text, encoding="utf-8")
        for file in files:
            os.replace(file, out / file.name)
    except OSError as error:
        raise StoreError(f"--out {out}: cannot write the pack there: {error.strerror}") from None
    return out / files[0].name, out / files[1].name


def _write_parquet(table: pa.Table, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for position, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            coded = table.column(position).combine_chunks().dictionary_encode()
            table = table.set_column(position, field.name, coded)
    labels = [name for name in table.column_names if name not in _MEASURED]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=labels,  # type: ignore[arg-type]  # the stubs know only a bool
        column_encoding=dict.fromkeys(_MEASURED, "BYTE_STREAM_SPLIT"),
    )
