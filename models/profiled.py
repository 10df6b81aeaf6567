"""From rows of a profile to deployments with step times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.steptimes import Floats, Ints, StepTimes

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ("model", "quantization", "gpu", "tp", "engine", "engine_version")
COLUMNS = (*KEYS, "phase", "batch", "input_tokens", "context_tokens", "status", "step_time_s", "provenance", "source")


@dataclass(frozen=True, slots=True)
class Profiled:
    """D deployments and their step times.

    Attributes
    ----------
    deployments, steps
        In the same order.
    provenance
        Each kind of evidence with its sources, once.
    """

    deployments: tuple[Deployment, ...]
    steps: StepTimes
    provenance: tuple[str, ...]


def profiled(table: pa.Table, where: str) -> Profiled | None:
    """Group the step-time rows of `table` by deployment; ``None`` when it has none with status ok.

    Parameters
    ----------
    table
        Rows with (at least) the columns :data:`COLUMNS`.
    where
        The pack or store that they come from, for messages.

    Raises
    ------
    InputError
        When a model, GPU or quantization is unknown to the catalogue.
    StoreError
        When a deployment has only prefill or only decode rows.
    """
    phase, status = _strings(table, "phase"), _strings(table, "status")
    chosen = np.flatnonzero(np.isin(phase, ("prefill", "decode")) & (status == "ok"))
    if not len(chosen):
        return None
    good = table.take(chosen)
    keys, index = _group(good)
    deployments = tuple(_deployment(key, where) for key in keys)
    times = _numbers(good, "step_time_s")
    batch = _numbers(good, "batch")
    prefills = phase[chosen] == "prefill"
    single = prefills & (batch == 1)
    decodes = ~prefills
    step_times = StepTimes.from_points(
        len(keys),
        (index[single], _numbers(good, "input_tokens")[single], times[single]),
        (index[decodes], batch[decodes], _numbers(good, "context_tokens")[decodes], times[decodes]),
        [f"{deployment} in {where}" for deployment in deployments],
    )
    sources = sorted(
        f"{row['provenance']}: {row['source']}"
        for row in good.group_by(["provenance", "source"]).aggregate([]).to_pylist()
    )
    return Profiled(deployments, step_times, tuple(sources))


def _strings(table: pa.Table, column: str) -> NDArray[np.str_]:
    return table[column].to_numpy(zero_copy_only=False).astype(str)


def _numbers(table: pa.Table, column: str) -> Floats:
    import pyarrow as pa

    return table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _group(table: pa.Table) -> tuple[list[tuple[str, ...]], Ints]:
    """Return the distinct keys, in order of name, and the key of each row."""
    codes = np.zeros(table.num_rows, dtype=np.intp)
    levels: list[list[str]] = []
    for name in KEYS:
        values, code = np.unique(_strings(table, name), return_inverse=True)
        levels.append([str(value) for value in values])
        codes = codes * len(values) + code
    distinct, index = np.unique(codes, return_inverse=True)
    keys: list[tuple[str, ...]] = []
    for code in distinct.tolist():
        key: list[str] = []
        for level in reversed(levels):
            code, at = divmod(code, len(level))  # noqa: PLW2901
            key.append(level[at])
        keys.append(tuple(reversed(key)))
    return keys, index


def _deployment(key: tuple[str, ...], where: str) -> Deployment:
    model, quantization, gpu, tp, engine, version = key
    return Deployment(
        Model.named(model, where),
        Quantization.parse(quantization, where),
        Gpu.named(gpu, where),
        int(tp),
        engine,
        version,
    )
