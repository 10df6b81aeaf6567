"""Summaries of aiperf (``profile_export_aiperf.json``), schema 1.0 to 1.5, aiperf 0.3 to 0.13.

aiperf's ``inter_token_latency`` is (request latency - TTFT)/(output tokens - 1) of a request: qplan's TPOT.
Its ``inter_chunk_latency``, where exported, is qplan's ITL. Every block names its unit, which is taken at
its word. ``request_count`` is of the requests that succeeded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, nearest
from qplan.core.units import DURATIONS
from qplan.profiles.importers.documents import QUANTILES, count, inside, number, read_documents, scaled, text
from qplan.profiles.observations import from_rows

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from qplan.profiles.importers import Given
    from qplan.profiles.importers.documents import Document

_METRICS = {
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_chunk_latency",
    "e2e": "request_latency",
}
_UNITS = {**DURATIONS, "ns": 1e-9, "sec": 1.0, "seconds": 1.0}


def read(path: Path, given: Given) -> pa.Table:
    """Return one serving row for each summary in the file."""
    rows = [given.complete(_row(path, document), path.name) for document in read_documents(path)]
    return from_rows(rows, str(path))


def _row(path: Path, run: Document) -> dict[str, Any]:
    if "request_latency" not in run and "error_request_count" not in run:
        raise InputError(f"{path}: not an aiperf summary: no 'request_latency' (profile_export_aiperf.json has it)")
    succeeded = count(path, run, "request_count", "avg") or 0
    failed = count(path, run, "error_request_count", "avg") or 0
    row: dict[str, Any] = {
        "model": _model(run),
        "input_tokens": number(path, run, "input_sequence_length", "avg"),
        "output_tokens": number(path, run, "output_sequence_length", "avg"),
        **_load(path, run),
        "requests": succeeded + failed,
        "failed_requests": failed,
        "duration_s": _seconds(path, run, "benchmark_duration", "avg"),
        "measured_on": _day(run),
    }
    if not succeeded:
        return {**row, "status": "failed", "reason": "no request succeeded"}
    if run.get("was_cancelled") is True:
        row |= {"status": "invalid", "reason": "the run was cancelled"}
    for ours, theirs in _METRICS.items():
        row[f"{ours}_mean_s"] = _seconds(path, run, theirs, "avg")
        row |= {f"{ours}_{q}_s": _seconds(path, run, theirs, q) for q in QUANTILES}
    return {
        **row,
        "achieved_qps": number(path, run, "request_throughput", "avg"),
        "goodput_qps": number(path, run, "goodput", "avg"),
        "output_tokens_per_s": number(path, run, "output_token_throughput", "avg"),
    }


def _seconds(path: Path, run: Document, metric: str, statistic: str) -> float | None:
    """Read a time in the unit that its block names."""
    value = number(path, run, metric, statistic)
    if value is None:
        return None
    unit = text(run, metric, "unit") or ""
    if unit not in _UNITS:
        raise InputError(
            f"{path}: '{metric}' has unit '{unit}'; expected one of {', '.join(_UNITS)}{nearest(unit, _UNITS)}"
        )
    return scaled(value, _UNITS[unit])


def _load(path: Path, run: Document) -> dict[str, Any]:
    """Read the load: ``input_config.loadgen`` of older versions, the profiling phase of newer ones."""
    asked = inside(run, "input_config", "loadgen")
    rate, in_flight = number(path, asked, "request_rate"), number(path, asked, "concurrency")
    for phase in _phases(run):
        if phase.get("name") == "profiling":
            rate, in_flight = number(path, phase, "rate"), number(path, phase, "concurrency")
    if not rate and not in_flight:
        return {"status": "invalid", "reason": "the file says neither a request rate nor a concurrency"}
    return {"offered_qps": rate, "concurrency": in_flight}


def _phases(run: Document) -> list[Document]:
    phases = inside(run, "input_config", "phases")
    return [phase for phase in phases if isinstance(phase, dict)] if isinstance(phases, list) else []


def _model(run: Document) -> str | None:
    """Read the model's name, where one model was benchmarked."""
    older = inside(run, "input_config", "endpoint", "model_names")
    newer = inside(run, "input_config", "models", "items")
    names = (
        older
        if isinstance(older, list)
        else [text(item, "name") for item in (newer if isinstance(newer, list) else ())]
    )
    return names[0] if len(names) == 1 and isinstance(names[0], str) else None


def _day(run: Document) -> str | None:
    match = re.match(r"\d{4}-\d{2}-\d{2}", text(run, "start_time") or "")
    return match[0] if match else None
