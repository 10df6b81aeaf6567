"""Measured loads with their repeats together: what the comparisons of findings are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError
from qplan.core.quantization import Quantization
from qplan.measure.energy.per_token import joules_per_token

if TYPE_CHECKING:
    import pyarrow as pa

TTFT, TPOT, ENERGY, ABOVE_IDLE, POWER = "ttft_p50_s", "tpot_p50_s", "j_per_token", "j_per_token_above_idle", "power_w"
_REPEATS = 0.05  # loads whose logarithms are closer are repeats of one
_KEEPS_UP = 0.8  # completions over requests due, in a window; less is a queue that grows
_CHANCE = 2.0  # standard deviations of a Poisson count by which completions may be fewer all the same
_AS_THEY_ARE = ("idle_power_w", "sm_clock_mean_mhz", "temperature_max_c", TTFT, TPOT)


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """What serves, whatever the quantization."""

    model: str
    engine: str
    engine_version: str
    gpu: str
    tp: int

    def __str__(self) -> str:
        """Print it in one line."""
        gpus = self.gpu if self.tp == 1 else f"{self.tp} x {self.gpu}"
        return f"{self.model}, {self.engine} {self.engine_version} on {gpus}"


@dataclass(frozen=True, slots=True, order=True)
class System(Server):
    """What serves, and the engine settings that differ from the adapter's own."""

    settings: str

    def __str__(self) -> str:
        """Print it in one line."""
        return f"{Server.__str__(self)} {self.settings}".rstrip()


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests are like.

    Attributes
    ----------
    input_tokens, output_tokens
        Means; NaN where the rows do not say.
    """

    name: str
    arrivals: str
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, eq=False)
class LoadPoint:
    """One rate of one quantization of a system, its repeats together; a point equals itself alone.

    Attributes
    ----------
    values
        By metric, one number a repeat: what the rows have, J/token, and power.
    batch
        Requests that are decoded together, by Little's law: generated tokens/s times TPOT; NaN where unknown.
    kept_up
        Whether completions kept up with the requests: else a queue grew, and latencies are of the run's length.
    light
        Whether it is in the lower half of its series' rates: runs lie closer together there.
    """

    offered_qps: float
    values: Mapping[str, tuple[float, ...]]
    batch: float
    kept_up: bool
    light: bool

    def mean(self, metric: str) -> float:
        """Return the geometric mean over repeats; NaN where nothing is known."""
        found = self.values.get(metric)
        return math.exp(sum(map(math.log, found)) / len(found)) if found else math.nan


@dataclass(frozen=True, slots=True)
class Series:
    """The loads of one quantization of a system under one mix, in rising order."""

    system: System
    mix: Mix
    quantization: Quantization
    points: tuple[LoadPoint, ...]

    def having(self, metric: str) -> tuple[LoadPoint, ...]:
        """Return the points that have a metric."""
        return tuple(point for point in self.points if point.values.get(metric))


@dataclass(frozen=True, slots=True)
class MeasuredLoads:
    """Every series of a pack or store, and why energy is missing from any."""

    series: tuple[Series, ...]
    energy_notes: tuple[str, ...]

    def baseline(self, one: Series) -> Series | None:
        """Return the same system and mix at 16 bits; ``None`` where that was not measured, or is the same."""
        return self._like(one, lambda other: other.is_16_bit)

    def with_16_bit_cache(self, one: Series) -> Series | None:
        """Return the same weights and activations with a KV cache of 16 bits; ``None`` as in :meth:`baseline`."""
        scheme = one.quantization.scheme
        return self._like(one, lambda other: other.scheme == scheme and other.kv.bits == _SIXTEEN)

    def _like(self, one: Series, wanted: Any) -> Series | None:
        for other in self.series:
            same = other.system == one.system and _mix_key(other.mix) == _mix_key(one.mix)
            if same and other.quantization != one.quantization and wanted(other.quantization):
                return other
        return None


_SIXTEEN = 16


def measured_loads(observations: pa.Table) -> MeasuredLoads:
    """Bring the open-loop runs that went well together, by system, mix, quantization and rate.

    Parameters
    ----------
    observations
        Rows with every column of the schema. Those of quantizations that qplan does not know are left out.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    notes: dict[str, None] = {}
    for row in observations.to_pylist():
        if row["phase"] != "serving" or row["status"] != "ok" or not row["offered_qps"]:
            continue
        if row["energy_note"] and row["energy_j"] is None:
            notes[row["energy_note"]] = None
        quantization = _known(row["quantization"])
        if quantization is not None:
            key = (_system(row), row["workload"] or "unnamed", row["arrivals"] or "", quantization)
            groups.setdefault(key, []).append(row)
    series = [_series(system, mix, arrivals, one, rows) for (system, mix, arrivals, one), rows in groups.items()]
    ordered = sorted(series, key=lambda one: (one.system, one.mix.name, one.mix.arrivals, str(one.quantization)))
    return MeasuredLoads(tuple(ordered), tuple(notes))


def _known(quantization: str) -> Quantization | None:
    try:
        return Quantization.parse(quantization)
    except InputError:
        return None


def _system(row: Mapping[str, Any]) -> System:
    names = ("model", "engine", "engine_version", "gpu", "tp")
    return System(**{name: row[name] for name in names}, settings=row["settings"] or "")


def _mix_key(mix: Mix) -> tuple[str, str]:
    return mix.name, mix.arrivals


def _series(
    system: System, workload: str, arrivals: str, quantization: Quantization, rows: Sequence[Mapping[str, Any]]
) -> Series:
    prompt, generated = (_mean([row[name] for row in rows]) for name in ("input_tokens", "output_tokens"))
    ordered = sorted(rows, key=lambda row: row["offered_qps"])
    parts: list[list[Mapping[str, Any]]] = []
    for row in ordered:
        if parts and math.log(row["offered_qps"] / parts[-1][0]["offered_qps"]) < _REPEATS:
            parts[-1].append(row)
        else:
            parts.append([row])
    points = tuple(_point(part, light=2 * place < len(parts)) for place, part in enumerate(parts))
    return Series(system, Mix(workload, arrivals, prompt, generated), quantization, points)


def _point(rows: Sequence[Mapping[str, Any]], *, light: bool) -> LoadPoint:
    values: dict[str, tuple[float, ...]] = {}
    for metric in (*_AS_THEY_ARE, ENERGY, ABOVE_IDLE, POWER):
        found = [value for row in rows if (value := _value(row, metric)) is not None and value > 0]
        if found:
            values[metric] = tuple(found)
    due = sum(row["requests"] or 0 for row in rows)
    completed = sum((row["achieved_qps"] or 0.0) * (row["duration_s"] or 0.0) for row in rows)
    rate = math.exp(sum(math.log(row["offered_qps"]) for row in rows) / len(rows))
    kept_up = completed >= min(_KEEPS_UP * due, due - _CHANCE * math.sqrt(due))
    return LoadPoint(rate, values, _mean([_batch(row) for row in rows]), kept_up, light)


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    """Return a column of a row, or what follows from several."""
    if metric in _AS_THEY_ARE:
        return None if row[metric] is None else float(row[metric])
    if row["energy_j"] is None or not row["duration_s"]:
        return None
    if metric == POWER:
        return float(row["energy_j"] / row["duration_s"])
    tokens = None if row["output_tokens_per_s"] is None else row["output_tokens_per_s"] * row["duration_s"]
    gross, above = joules_per_token(row["energy_j"], row["duration_s"], tokens, row["idle_power_w"])
    return gross if metric == ENERGY else above


def _batch(row: Mapping[str, Any]) -> float | None:
    if not row["output_tokens_per_s"] or not row["tpot_mean_s"]:
        return None
    return float(row["output_tokens_per_s"] * row["tpot_mean_s"])


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan
