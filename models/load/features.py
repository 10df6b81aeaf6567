"""From observations to the numbers that surrogates learn from.

A row under load becomes the load, codes of nested groups (its model; its deployment with engine and settings; the
request mix on it) and physical features. Names of GPUs and quantizations are never features: what they can do is,
so that a new one has a place among those measured. All but bits and versions are logarithms, in which ideal times
multiply and divide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.load.monotone import AMORTISED, RISING, SATURATING
from qplan.models.steps.roofline import terms
from qplan.models.steptimes import Bools, Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa

LOADS = ("concurrency", "offered_qps", "batch")
COLUMNS = (
    "model_code",
    "deployment_code",
    "configuration_code",
    "load",
    "ln_weights_s",  # reading all weights of a GPU once, at its peak bandwidth
    "ln_token_s",  # multiplying one token by them, at its peak in their format
    "ln_kv_s",  # reading the KV cache of one token
    "ln_kv_tokens",  # tokens that the KV cache holds
    "ln_tp",
    "ln_gpu_bandwidth",
    "weight_bits",
    "activation_bits",
    "kv_bits",
    "ln_input_tokens",
    "ln_output_tokens",
    "engine",
    "engine_version",
)
LOAD = COLUMNS.index("load")
GROUPS = (0, 1, 2)
CONFIGURATION = GROUPS[-1]
LENGTHS = (COLUMNS.index("ln_input_tokens"), COLUMNS.index("ln_output_tokens"))

_MODEL = ("model",)
_DEPLOYMENT = ("model", "quantization", "gpu", "tp", "engine", "engine_version", "settings")
_CONFIGURATION = (*_DEPLOYMENT, "workload", "arrivals")
_NEEDED = (*_CONFIGURATION, "phase", "status", "input_tokens", "output_tokens", *LOADS)
_NO_CODE = -1.0

_RATIOS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "j_per_output_token": ("energy_j", ("output_tokens_per_s", "duration_s")),
    "j_per_request": ("energy_j", ("achieved_qps", "duration_s")),
    "power_w": ("energy_j", ("duration_s",)),
}
_ELASTICITY = {
    "j_per_output_token": AMORTISED,
    "j_per_request": AMORTISED,
    "power_w": SATURATING,
    "output_tokens_per_s": SATURATING,
    "achieved_qps": SATURATING,
}
_LATENCY = re.compile(r"(ttft|tpot|itl|e2e)_(mean|p50|p90|p95|p99)_s")
_LATENCIES = [f"{metric}_{one}_s" for metric in ("ttft", "tpot", "itl", "e2e") for one in ("mean", "p50", "p90")]


@dataclass(frozen=True, slots=True)
class LoadRows:
    """Measured rows of one metric as a surrogate takes them.

    Attributes
    ----------
    X : (N, F)
        One row an observation; what each column is stands in `COLUMNS`.
    y : (N,)
        The metric.
    rows : (N,)
        Their positions in the table of observations.
    elasticity
        Bounds of the metric's elasticity.
    encoder
        Encodes queries alike.
    """

    X: Floats
    y: Floats
    rows: Floats
    elasticity: tuple[float, float]
    encoder: LoadEncoder


@dataclass(frozen=True, slots=True)
class LoadEncoder:
    """The load axis, and the groups, engines and versions that were measured, in the order of their codes.

    Attributes
    ----------
    axis
        ``concurrency``, ``offered_qps`` or ``batch``.
    groups
        Keys of models, of deployments and of configurations.
    engines, versions
        Names of engines, and engine with version, oldest first.
    """

    axis: str
    groups: tuple[tuple[tuple[Any, ...], ...], ...]
    engines: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], axis: str) -> LoadEncoder:
        """Give codes to what is in `rows`."""
        groups = tuple(
            tuple(sorted({_key(row, columns) for row in rows}, key=repr))
            for columns in (_MODEL, _DEPLOYMENT, _CONFIGURATION)
        )
        pairs = {(str(row["engine"]), str(row["engine_version"])) for row in rows}
        versions = tuple(sorted(pairs, key=lambda pair: (pair[0], _version(pair[1]))))
        return cls(axis, groups, tuple(sorted({engine for engine, _ in pairs})), versions)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Return X (N, F) of `rows`, which map column names of the schema to values.

        A group that was not measured has the code -1; so has a new engine or version, which no feature can place.

        Raises
        ------
        InputError
            A model, GPU or quantization is unknown, or the load or a length is missing.
        """
        positions = [{key: float(code) for code, key in enumerate(keys)} for keys in self.groups]
        X = np.empty((len(rows), len(COLUMNS)))
        for n, row in enumerate(rows):
            for name in (self.axis, "input_tokens", "output_tokens"):
                if not (row.get(name) or 0) > 0:
                    raise InputError(f"row {n} has {name} {row.get(name)}; a surrogate over load needs more than 0")
            keys = (_key(row, columns) for columns in (_MODEL, _DEPLOYMENT, _CONFIGURATION))
            engine, version = str(row["engine"]), str(row["engine_version"])
            X[n] = (
                *(known.get(key, _NO_CODE) for known, key in zip(positions, keys, strict=True)),
                row[self.axis],
                *_deployment(row["model"], row["quantization"], row["gpu"], int(row["tp"])),
                np.log(row["input_tokens"]),
                np.log(row["output_tokens"]),
                _position(self.engines, engine),
                _position([two for one, two in self.versions if one == engine], version),
            )
        return X

    def to_data(self) -> dict[str, Any]:
        """Return plain lists, for a saved model."""
        return {
            "axis": self.axis,
            "groups": [[list(key) for key in keys] for keys in self.groups],
            "engines": list(self.engines),
            "versions": [list(pair) for pair in self.versions],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> LoadEncoder:
        """Read what :meth:`to_data` wrote; anything else is an :class:`InputError`."""
        try:
            groups = tuple(tuple(tuple(key) for key in keys) for keys in data["groups"])
            engines = tuple(str(engine) for engine in data["engines"])
            versions = tuple((str(engine), str(version)) for engine, version in data["versions"])
            axis = data["axis"]
        except (KeyError, TypeError, ValueError):
            raise InputError("not the columns of a load surrogate; expected axis, groups, engines, versions") from None
        if axis not in LOADS or len(groups) != len(GROUPS):
            raise InputError(f"columns of a load surrogate over '{axis}'; expected one of {', '.join(LOADS)}")
        return cls(axis, groups, engines, versions)


def metrics() -> list[str]:
    """Return the metrics that a surrogate can be fitted to, percentiles beyond the 90th left out."""
    return [*_LATENCIES, *_ELASTICITY]


def load_rows(table: pa.Table, metric: str, axis: str | None = None, encoder: LoadEncoder | None = None) -> LoadRows:
    """Take the serving rows of a table of observations that have `metric` and a load.

    Parameters
    ----------
    table
        Observations, in the schema's columns.
    metric
        A latency column of the schema, or one of :func:`metrics`.
    axis
        The column that holds the load; ``None`` takes the one that most rows have.
    encoder
        Encodes the rows, over its own axis; ``None`` makes one of them.

    Raises
    ------
    InputError
        The metric or the axis is unknown, or no row has both.
    """
    elasticity = RISING if _LATENCY.fullmatch(metric) else _ELASTICITY.get(metric)
    if elasticity is None:
        raise InputError(
            f"no metric '{metric}' over load; known are {', '.join(metrics())}{nearest(metric, metrics())}"
        )
    y = _metric(table, metric)
    axis, kept = _served(table, axis if encoder is None else encoder.axis, np.isfinite(y) & (y > 0))
    if not len(kept):
        raise InputError(f"no serving row has {metric}, {axis}, input_tokens and output_tokens; nothing to fit")
    rows = _rows(table, kept)
    encoder = LoadEncoder.of(rows, axis) if encoder is None else encoder
    return LoadRows(encoder.encode(rows), y[kept], kept.astype(float), elasticity, encoder)


def served_rows(table: pa.Table) -> tuple[str, list[dict[str, Any]]]:
    """Return the load axis that most serving rows have, and those rows, whichever metrics they hold; maybe none."""
    axis, kept = _served(table, None, np.ones(table.num_rows, dtype=bool))
    return axis, _rows(table, kept)


def _served(table: pa.Table, axis: str | None, among: Bools) -> tuple[str, Ints]:
    """Return the load axis, and the positions of serving rows that went well, with a load and lengths."""
    if axis is not None and axis not in LOADS:
        raise InputError(f"no load '{axis}'; expected one of {', '.join(LOADS)}{nearest(axis, LOADS)}")
    served = _mask(table, "phase", "serving") & _mask(table, "status", "ok") & among
    loads = {name: _numbers(table, name) for name in ([axis] if axis else LOADS)}
    axis = max(loads, key=lambda name: int((served & (loads[name] > 0)).sum()))
    lengths = (_numbers(table, "input_tokens") > 0) & (_numbers(table, "output_tokens") > 0)
    return axis, np.flatnonzero(served & (loads[axis] > 0) & lengths)


def _rows(table: pa.Table, kept: Ints) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        table.select([name for name in _NEEDED if name in table.column_names]).take(kept).to_pylist()
    )
    return rows


def _metric(table: pa.Table, metric: str) -> Floats:
    """Return a column, or a ratio of columns, (N,); NaN where it is not known."""
    over, under = _RATIOS.get(metric, (metric, ()))
    value = _numbers(table, over)
    for name in under:
        divisor = _numbers(table, name)
        value = np.divide(value, divisor, out=np.full(len(value), np.nan), where=divisor > 0)
    return value


def _numbers(table: pa.Table, name: str) -> Floats:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    import pyarrow as pa

    return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=float)


def _mask(table: pa.Table, name: str, value: str) -> Bools:
    return np.array([one == value for one in table[name].to_pylist()], dtype=bool)


def _key(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in columns)


def configuration_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the key of an observation's configuration, as :class:`LoadEncoder` has it."""
    return _key(row, _CONFIGURATION)


def _version(text: str) -> tuple[tuple[int, str], ...]:
    """Return a key that puts 0.9 before 0.10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[a-z]+", text.lower()))


def _position(known: Sequence[str], name: str) -> float:
    return float(known.index(name)) if name in known else _NO_CODE


@cache
def _deployment(model: str, quantization: str, gpu: str, tp: int) -> tuple[float, ...]:
    """Return the features from ``ln_weights_s`` to ``kv_bits``."""
    deployment = Deployment(
        Model.named(model, where="model"),
        Quantization.parse(quantization, where="quantization"),
        Gpu.named(gpu, where="gpu"),
        tp,
    )
    one = terms(deployment, np.zeros(1), np.ones(1), np.zeros(1))
    bandwidth = deployment.gpu.bandwidth_tb_s * 1e12
    scheme = deployment.quantization
    return (
        float(np.log(deployment.weight_bytes / tp / bandwidth)),
        float(np.log(one.gemm_s[0])),
        float(np.log(deployment.kv_bytes_per_token / bandwidth)),
        float(np.log(max(deployment.memory().kv_tokens, 1))),
        float(np.log(tp)),
        float(np.log(bandwidth)),
        float(scheme.weights.bits),
        float(scheme.activations.bits),
        float(scheme.kv.bits),
    )
