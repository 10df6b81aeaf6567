"""Parquet files whose columns are qplan's own: packs, exports of a store, tables that others made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qplan.core.errors import InputError
from qplan.profiles.importers import Given
from qplan.profiles.observations import conform, one_line

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


def read(path: Path, given: Given) -> pa.Table:
    """Return the table of the file, whether or not a pack's card is beside it.

    Raises
    ------
    InputError
        The file is not Parquet or breaks the schema, or the user says of it what it says itself.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if given != Given():
        raise InputError(f"{path}: a Parquet file says itself what was measured; only --format goes with it")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {one_line(error)}") from None
    return conform(table, str(path))
