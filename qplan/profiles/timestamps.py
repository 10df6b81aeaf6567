"""Timestamps of the requests behind a pack's loads: a second Parquet file beside it, a row a request.

``NAME.requests.parquet`` stands beside ``NAME.parquet``. Its column `point` is the column `source` of the observation
that a request belongs to. Times are whole microseconds, kept as differences (:data:`SCHEMA`), which compress to some
ten bytes a request; chunks between the first and the last are not kept, so that the gaps between them (ITL) cannot be
told again. Latencies follow the definitions of the schema: TTFT from sending to the first token, TPOT
``(E2E - TTFT) / (output tokens - 1)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qplan.core.errors import InputError, StoreError
from qplan.profiles.observations import one_line
from qplan.profiles.packs import find_pack, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]

SUFFIX = ".requests.parquet"
COLUMNS = (
    *("point", "scheduled_us", "lag_us", "first_token_us", "last_token_us"),
    *("input_tokens", "output_tokens", "outcome", "steady"),
)
OK = "ok"

_DELTAS = ("scheduled_us", "lag_us", "first_token_us", "last_token_us", "input_tokens", "output_tokens")
_PERCENTILES = (50, 90, 95, 99)


@cache
def schema() -> pa.Schema:
    """Return the columns of the file.

    point
        `source` of the observation.
    scheduled_us
        When the request was to be sent, since the start of its run.
    lag_us
        How much later it was sent.
    first_token_us, last_token_us
        First content since sending, and last content since the first; null where none came.
    input_tokens, output_tokens
        As the server counted them; null where it did not say.
    outcome
        ``ok``, ``failed``, ``timeout``, ``truncated``, ``empty`` or ``cancelled``.
    steady
        Whether it was due while the load was steady: percentiles are of these that are ok.
    """
    import pyarrow as pa

    kinds = {"point": pa.string(), "outcome": pa.string(), "steady": pa.bool_()}
    return pa.schema([pa.field(name, kinds.get(name, pa.int64())) for name in COLUMNS])


@dataclass(frozen=True, slots=True)
class PointLatencies:
    """Requests of one point; arrays are of its steady ones that are ok, in seconds.

    Attributes
    ----------
    point
        `source` of the observation.
    requests, failed
        Due while the load was steady, and those of them that failed; what the client cancelled is no failure.
    ttft_s, tpot_s
        (n,); TPOT without requests of a single token, or of a number that the server did not tell.
    """

    point: str
    requests: int
    failed: int
    ttft_s: Floats
    tpot_s: Floats

    def columns(self) -> dict[str, float | int | None]:
        """Return what an observation says of the same requests, by the names of its columns."""
        found: dict[str, float | int | None] = {"requests": self.requests, "failed_requests": self.failed}
        for metric, sample in (("ttft", self.ttft_s), ("tpot", self.tpot_s)):
            values = [None] * len(_PERCENTILES)
            if len(sample):
                values = np.percentile(sample, _PERCENTILES).tolist()
            found[f"{metric}_mean_s"] = float(sample.mean()) if len(sample) else None
            found |= {f"{metric}_p{q}_s": value for q, value in zip(_PERCENTILES, values, strict=True)}
        return found


def requests_path(pack: Path) -> Path:
    """Return where the timestamps of a pack's Parquet file are."""
    return pack.with_name(f"{pack.stem}{SUFFIX}")


def write_requests(pack: Path, table: pa.Table) -> Path:
    """Write the timestamps of `pack` beside it, whole or not at all; return the file.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    import pyarrow.parquet as pq

    path = requests_path(pack)
    write_whole(
        path,
        lambda file: pq.write_table(
            table.cast(schema()),
            file,
            compression="zstd",
            compression_level=19,
            use_dictionary=["point", "outcome"],  # type: ignore[arg-type]  # the stubs have bool alone
            column_encoding=dict.fromkeys(_DELTAS, "DELTA_BINARY_PACKED"),
            write_statistics=False,
        ),
    )
    return path


def read_requests(name_or_path: str | Path) -> pa.Table:
    """Read the timestamps of a pack, by the pack's name or its Parquet file.

    Raises
    ------
    InputError
        There is no such pack, or none were shipped with it.
    StoreError
        The file cannot be read, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pack = find_pack(str(name_or_path))
    path = requests_path(pack)
    if not path.is_file():
        raise InputError(
            f"{pack.stem} has no timestamps of requests: expected {path.name} beside it; "
            "qplan profiles export --requests writes it from the store of a campaign"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: not a readable Parquet file: {one_line(error)}") from None
    if table.schema.names != list(COLUMNS):
        raise StoreError(f"{path}: columns {', '.join(table.schema.names)}; expected {', '.join(COLUMNS)}")
    return table.cast(schema())


def latencies(table: pa.Table) -> Iterator[PointLatencies]:
    """Yield the latencies of each point, in the order of the table."""
    point = table["point"].to_numpy()
    ends = [0, *(np.flatnonzero(point[1:] != point[:-1]) + 1).tolist(), len(point)] if len(point) else []
    ttft_s, gaps_us, tokens = (_numbers(table, name) for name in ("first_token_us", "last_token_us", "output_tokens"))
    steady = table["steady"].to_numpy()
    outcome = table["outcome"].to_numpy()
    for start, end in itertools.pairwise(ends):
        own = np.arange(start, end)[steady[start:end]]
        good = own[outcome[own] == OK]
        several = good[tokens[good] > 1]
        yield PointLatencies(
            str(point[start]),
            len(own),
            int(np.isin(outcome[own], (OK, "cancelled"), invert=True).sum()),
            ttft_s[good] / 1e6,
            gaps_us[several] / (tokens[several] - 1) / 1e6,
        )


def differences(observations: Sequence[dict[str, object]], table: pa.Table) -> dict[str, float]:
    """Return by point how far latencies told again lie from its observation: the largest relative difference.

    Parameters
    ----------
    observations
        Rows of the pack, with `source` and every latency column. Points without a row are left out.
    """
    rows = {str(row["source"]): row for row in observations if row["status"] == OK}
    found = {}
    for one in latencies(table):
        if one.point in rows:
            found[one.point] = max(_apart(rows[one.point][name], value) for name, value in one.columns().items())
    return found


def _apart(said: object, told: float | None) -> float:
    if said is None or told is None:
        return 0.0 if said is told else float("inf")
    return 0.0 if said == told else abs(float(str(said)) - told) / max(abs(told), 1e-12)


def _numbers(table: pa.Table, name: str) -> Floats:
    import pyarrow as pa

    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
