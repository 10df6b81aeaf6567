"""From the grids that were composed to rows of observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qplan.core.units import GIB
from qplan.profiles.compose import request
from qplan.profiles.compose.isotonic import Repair, repair

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from qplan.profiles.compose.request import Candidate, System

Floats = NDArray[np.float64]

PROVENANCE = "kernel-composed"
_SORT = ("model", "quantization", "tp", "phase", "batch", "input_tokens", "context_tokens")


@dataclass(frozen=True, slots=True)
class Composed:
    """The pack's share of one GPU.

    Attributes
    ----------
    rows
        Observations, in the columns of ``schema.csv`` that have a value at all.
    deployments, oom
        How many deployments there are, and the names of those that do not fit.
    repaired
        By phase, what it took to make the times rise.
    """

    system: System
    rows: pa.Table
    capacity_bytes: float
    deployments: int
    oom: tuple[str, ...]
    repaired: Mapping[str, Repair]


def compose(candidates: Sequence[Candidate], arrays: Mapping[str, Floats]) -> Composed:
    """Turn what the worker composed for one GPU into rows.

    A deployment that fits has a row for each point whose memory fits. One that does not has a single row,
    with status oom, at the smallest decode iteration.

    Parameters
    ----------
    candidates : (D,)
        The deployments, in the order of the arrays.
    arrays
        As :func:`qplan.profiles.compose.worker.compose` returns them.
    """
    import pyarrow as pa

    capacity = float(arrays["capacity_bytes"])
    fits = (arrays["decode_bytes"] <= capacity).any(axis=(1, 2))
    refused = [int(i) for i in np.flatnonzero(~fits)]
    prefill_s, prefill_repair = repair(arrays["prefill_s"])
    decode_s, decode_repair = repair(arrays["decode_s"])

    tables = [_refused(candidates, arrays, refused)] if refused else []
    for phase, times_s, batches, lengths in (
        ("prefill", prefill_s, request.PREFILL_BATCHES, request.PREFILL_TOKENS),
        ("decode", decode_s, request.DECODE_BATCHES, request.DECODE_CONTEXTS),
    ):
        memory = arrays[f"{phase}_bytes"]
        deployment, row, column = np.nonzero(fits.reshape(-1, 1, 1) & (memory <= capacity))
        tables.append(
            _table(
                [candidates[int(i)] for i in deployment],
                phase,
                np.asarray(batches)[row],
                np.asarray(lengths)[column],
                times_s[deployment, row, column],
                memory[deployment, row, column],
            )
        )
    return Composed(
        system=candidates[0].system,
        rows=pa.concat_tables(tables).sort_by([(name, "ascending") for name in _SORT]),
        capacity_bytes=capacity,
        deployments=len(candidates),
        oom=tuple(f"{c.model} {c.scheme.quantization} x{c.tp}" for c in (candidates[i] for i in refused)),
        repaired={"prefill": prefill_repair, "decode": decode_repair},
    )


def _refused(candidates: Sequence[Candidate], arrays: Mapping[str, Floats], index: Sequence[int]) -> pa.Table:
    weights, runtime = arrays["weights_bytes"] / GIB, arrays["reserve_bytes"] / GIB
    capacity = float(arrays["capacity_bytes"]) / GIB
    return _table(
        [candidates[i] for i in index],
        "decode",
        np.full(len(index), request.DECODE_BATCHES[0]),
        np.full(len(index), request.DECODE_CONTEXTS[0]),
        np.full(len(index), np.nan),
        arrays["decode_bytes"][index, 0, 0],
        status="oom",
        reasons=[
            f"{weights[i]:.1f} GiB of weights and {runtime[i]:.1f} GiB of runtime "
            f"on each GPU, which has {capacity:.1f} GiB"
            for i in index
        ],
    )


def _table(
    of: Sequence[Candidate],
    phase: str,
    batch: NDArray[np.int64],
    length: NDArray[np.int64],
    times_s: Floats,
    memory_bytes: Floats,
    status: str = "ok",
    reasons: Iterable[str] | None = None,
) -> pa.Table:
    import pyarrow as pa

    count = len(of)
    nothing = pa.nulls(count)
    columns: dict[str, Any] = {
        "model": [c.model.name for c in of],
        "quantization": [c.scheme.quantization for c in of],
        "gpu": [c.system.gpu for c in of],
        "tp": [c.tp for c in of],
        "engine": [request.ENGINE] * count,
        "engine_version": [c.system.tables for c in of],
        "phase": [phase] * count,
        "input_tokens": length if phase == "prefill" else nothing,
        "context_tokens": length if phase == "decode" else nothing,
        "batch": batch,
        "repeat": [0] * count,
        "status": [status] * count,
        "reason": nothing if reasons is None else list(reasons),
        "step_time_s": pa.array(times_s, mask=np.isnan(times_s)),
        "memory_bytes": np.round(memory_bytes),
        "provenance": [PROVENANCE] * count,
        "source": [
            f"{request.PACKAGE} {request.VERSION}, {c.system.name}, {request.ENGINE} {c.system.tables} tables"
            for c in of
        ],
    }
    numbers = {
        "tp": pa.int64(),
        "input_tokens": pa.float64(),
        "context_tokens": pa.float64(),
        "batch": pa.int64(),
        "repeat": pa.int64(),
        "step_time_s": pa.float32(),
        "memory_bytes": pa.float64(),
    }
    arrays = [pa.array(v).cast(numbers.get(name, pa.string()), safe=False) for name, v in columns.items()]
    return pa.table(arrays, names=list(columns))
