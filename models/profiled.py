"""From rows of a profile to deployments with step times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.steptimes import Floats, Ints, StepTimes
from qplan.profiles.arrays import numbers

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ("model", "quantization", "gpu", "tp", "engine", "engine_version")
COLUMNS = (*KEYS, "phase", "batch", "input_tokens", "context_tokens", "status", "step_time_s", "provenance", "source")


@dataclass(frozen=True, slots=True)
class Profiled:
    """D deployments and their step times.

    Attributes
    ----------
    deployments, steps, provenance
        In the same order; the provenance is the kind of evidence and its source, in words.
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
    phase, phases = codes_of(table, "phase")
    status, statuses = codes_of(table, "status")
    steps = np.isin(phase, [n for n, name in enumerate(phases) if name in ("prefill", "decode")])
    chosen = np.flatnonzero(steps & np.isin(status, [n for n, name in enumerate(statuses) if name == "ok"]))
    if not len(chosen):
        return None
    good = table if len(chosen) == table.num_rows else table.take(chosen)
    keys, index = keys_of(good)
    deployments = tuple(deployment_of(key, where) for key in keys)
    times = numbers_of(good, "step_time_s")
    batch = numbers_of(good, "batch")
    prefills = np.array([name == "prefill" for name in phases])[phase[chosen]]
    single = prefills & (batch == 1)
    decodes = ~prefills
    step_times = StepTimes.from_points(
        len(keys),
        (index[single], numbers_of(good, "input_tokens")[single], times[single]),
        (index[decodes], batch[decodes], numbers_of(good, "context_tokens")[decodes], times[decodes]),
        [f"{deployment} in {where}" for deployment in deployments],
    )
    return Profiled(deployments, step_times, _evidence(good, index, len(keys)))


def _evidence(table: pa.Table, index: Ints, deployments: int) -> tuple[str, ...]:
    """Join the distinct kinds of evidence and sources of each deployment's rows."""
    kind, kinds = codes_of(table, "provenance")
    source, sources = codes_of(table, "source")
    seen = np.zeros((deployments, len(kinds), len(sources)), dtype=bool)
    seen[index, kind, source] = True
    return tuple("; ".join(f"{kinds[k]}: {sources[s]}" for k, s in np.argwhere(pairs)) for pairs in seen)


def codes_of(table: pa.Table, column: str) -> tuple[Ints, list[str]]:
    """Return the distinct values of `column` in order, as text, and the place of each row's value among them."""
    import pyarrow as pa

    values: Any = table[column].unify_dictionaries().combine_chunks()
    if pa.types.is_integer(values.type):
        distinct, codes = np.unique(numbers(values), return_inverse=True)
    else:
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        distinct, codes = encoded.dictionary.to_pylist(), numbers(encoded.indices)
    names = [str(value) for value in distinct]
    order = np.argsort(names)
    rank = np.empty(len(names), dtype=np.intp)
    rank[order] = np.arange(len(names))
    return rank[codes], [names[n] for n in order]


def numbers_of(table: pa.Table, column: str) -> Floats:
    """Return a column as numbers, nan where it has none."""
    return numbers(table[column].combine_chunks()).astype(np.float64)


def keys_of(table: pa.Table) -> tuple[list[tuple[str, ...]], Ints]:
    """Return the distinct keys, in order of name, and the key of each row."""
    columns = [codes_of(table, name) for name in KEYS]
    combined = np.zeros(table.num_rows, dtype=np.intp)
    for code, values in columns:
        combined = combined * len(values) + code
    _, first, index = np.unique(combined, return_index=True, return_inverse=True)
    return [tuple(values[code[row]] for code, values in columns) for row in first], index


def deployment_of(key: tuple[str, ...], where: str) -> Deployment:
    """Return the deployment that values of :data:`KEYS` name."""
    model, quantization, gpu, tp, engine, version = key
    return Deployment(
        Model.named(model, where),
        Quantization.parse(quantization, where),
        Gpu.named(gpu, where),
        int(tp),
        engine,
        version,
    )
