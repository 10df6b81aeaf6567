"""Benchmark reports of guidellm (``benchmarks.json``), 0.4 to 0.8.

Beware of the names. guidellm's ``time_per_output_token_ms`` includes the first token and is not read. Its
``inter_token_latency_ms`` is, for one request, qplan's TPOT: (last token - first token)/(output tokens -
1). In the report each request weighs as much as it has tokens, so the mean is the mean ITL and the
percentiles are those of TPOT *over tokens*. Where the report holds every request, TPOT over requests is
computed from them; where it holds a sample, the percentiles over tokens stand in, and the row's ``source``
says so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError
from qplan.profiles.importers.documents import QUANTILES, count, inside, number, read_documents, scaled, text
from qplan.profiles.observations import from_rows

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from qplan.profiles.importers import Given
    from qplan.profiles.importers.documents import Document

_MILLI = 1e-3
_OPEN_LOOP = ("constant", "poisson")


def read(path: Path, given: Given) -> pa.Table:
    """Return one serving row for each benchmark in the report."""
    rows = []
    for report in read_documents(path):
        benchmarks = report.get("benchmarks")
        if not isinstance(benchmarks, list):
            raise InputError(f"{path}: not a guidellm report: no list 'benchmarks'")
        rows += [given.complete(_row(path, report, benchmark), path.name) for benchmark in benchmarks]
    return from_rows(rows, str(path))


def _row(path: Path, report: Document, benchmark: Any) -> dict[str, Any]:
    metrics = inside(benchmark, "metrics")
    succeeded = count(path, metrics, "request_totals", "successful")
    if succeeded is None:
        raise InputError(f"{path}: not a guidellm benchmark: no 'metrics.request_totals.successful'")
    errored = count(path, metrics, "request_totals", "errored") or 0
    row: dict[str, Any] = {
        "model": text(benchmark, "config", "backend", "model") or text(report, "args", "model"),
        "input_tokens": _mean(path, metrics, "prompt_token_count"),
        "output_tokens": _mean(path, metrics, "output_token_count"),
        **_load(path, benchmark),
        "requests": succeeded + errored,  # what was cut off at the end is neither a success nor a failure
        "failed_requests": errored,
        "duration_s": number(path, benchmark, "duration"),
        "measured_on": _day(number(path, benchmark, "start_time")),
    }
    if not succeeded:
        return {**row, "status": "failed", "reason": "no request succeeded"}
    tpot, weighted = _tpot(path, benchmark, succeeded)
    return {
        **row,
        **_distribution(path, metrics, "time_to_first_token_ms", "ttft", _MILLI),
        **_distribution(path, metrics, "request_latency", "e2e", 1.0),
        **tpot,
        "itl_mean_s": scaled(_mean(path, metrics, "inter_token_latency_ms"), _MILLI),
        "achieved_qps": _mean(path, metrics, "requests_per_second"),
        "output_tokens_per_s": _mean(path, metrics, "output_tokens_per_second"),
        "source": f"{path.name} (TPOT weighted by tokens)" if weighted else path.name,
    }


def _load(path: Path, benchmark: Any) -> dict[str, Any]:
    """Say how requests were offered: an open loop with a rate, or a closed one with a number in flight."""
    strategy = inside(benchmark, "config", "strategy")
    kind = text(strategy, "type_")
    if kind in _OPEN_LOOP:
        return {"offered_qps": number(path, strategy, "rate")}
    if kind == "synchronous":
        return {"concurrency": 1.0}
    if kind == "concurrent":
        return {"concurrency": number(path, strategy, "streams")}
    if kind == "throughput" and number(path, strategy, "max_concurrency"):
        return {"concurrency": number(path, strategy, "max_concurrency")}
    return {"status": "invalid", "reason": f"strategy '{kind or 'unknown'}' has no steady load"}


def _distribution(path: Path, metrics: Any, theirs: str, ours: str, factor: float) -> dict[str, float | None]:
    """Read mean and percentiles of a metric over the requests that succeeded."""
    successful = inside(metrics, theirs, "successful")
    found = {f"{ours}_{q}_s": scaled(number(path, successful, "percentiles", q), factor) for q in QUANTILES}
    return {f"{ours}_mean_s": scaled(number(path, successful, "mean"), factor), **found}


def _tpot(path: Path, benchmark: Any, succeeded: int) -> tuple[dict[str, float | None], bool]:
    """Return TPOT over requests where all are there, else over tokens, and whether it is over tokens."""
    requests = inside(benchmark, "requests", "successful")
    if isinstance(requests, list) and len(requests) == succeeded:
        each = [number(path, request, "inter_token_latency_ms") for request in requests]
        values = [value * _MILLI for value in each if value is not None]
        if values:
            quantiles = np.percentile(values, [int(q[1:]) for q in QUANTILES])
            each_s = {f"tpot_{q}_s": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
            return {"tpot_mean_s": float(np.mean(values)), **each_s}, False
    found = _distribution(path, inside(benchmark, "metrics"), "inter_token_latency_ms", "tpot", _MILLI)
    return found, any(value is not None for value in found.values())


def _mean(path: Path, metrics: Any, name: str) -> float | None:
    return number(path, metrics, name, "successful", "mean")


def _day(timestamp: float | None) -> str | None:
    """Turn seconds since 1970 into an ISO date, UTC."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).date().isoformat() if timestamp else None
    except (OverflowError, OSError, ValueError):
        return None
