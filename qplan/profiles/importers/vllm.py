"""Results of ``vllm bench serve --save-result`` (and ``--append-result``), as of vLLM 0.33.

vLLM's TTFT, TPOT, ITL and E2E are qplan's own. Its latencies are of the requests that succeeded, in
milliseconds; percentiles are those asked for with ``--metric-percentiles`` (only the 99th by default), E2E
only with ``--percentile-metrics ttft,tpot,itl,e2el``. With ``--max-concurrency`` its TTFT starts when a
request leaves the client's queue.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.profiles.importers.documents import QUANTILES, count, number, ratio, read_documents, scaled, text
from qplan.profiles.observations import from_rows

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from qplan.profiles.importers import Given
    from qplan.profiles.importers.documents import Document

_METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}
_MILLI = 1e-3


def read(path: Path, given: Given) -> pa.Table:
    """Return one serving row for each run in the file."""
    rows = [given.complete(_row(path, document), path.name) for document in read_documents(path)]
    return from_rows(rows, str(path))


def _row(path: Path, run: Document) -> dict[str, Any]:
    completed = count(path, run, "completed")
    if completed is None or "request_throughput" not in run:
        raise InputError(f"{path}: not a result of `vllm bench serve`: no 'completed' and 'request_throughput'")
    if run.get("ramp_up_strategy"):
        raise InputError(f"{path}: the request rate ramps up during the run; a profile is of one rate")
    failed = count(path, run, "failed")
    if failed is None:  # older versions do not write it
        failed = max((count(path, run, "num_prompts") or completed) - completed, 0)
    rate = None if run.get("request_rate") == "inf" else number(path, run, "request_rate")
    concurrency = number(path, run, "max_concurrency")
    row: dict[str, Any] = {
        "model": text(run, "model_id"),
        "engine": "vllm" if run.get("backend") == "vllm" else None,
        "input_tokens": ratio(number(path, run, "total_input_tokens"), completed),
        "output_tokens": ratio(number(path, run, "total_output_tokens"), completed),
        "offered_qps": rate,
        "concurrency": concurrency,
        "requests": completed + failed,
        "failed_requests": failed,
        "duration_s": number(path, run, "duration"),
        "measured_on": _day(run),
    }
    if not completed:
        return {**row, "status": "failed", "reason": "no request completed"}
    if not rate and not concurrency:
        row |= {"status": "invalid", "reason": "every request was sent at once: no steady load"}
    row |= {
        "achieved_qps": number(path, run, "request_throughput"),
        "goodput_qps": number(path, run, "request_goodput"),
        "output_tokens_per_s": number(path, run, "output_throughput"),
    }
    for metric, theirs in _METRICS.items():
        row[f"{metric}_mean_s"] = scaled(number(path, run, f"mean_{theirs}_ms"), _MILLI)
        for quantile in QUANTILES:
            row[f"{metric}_{quantile}_s"] = scaled(number(path, run, f"{quantile}_{theirs}_ms"), _MILLI)
        row[f"{metric}_p50_s"] = scaled(number(path, run, f"median_{theirs}_ms"), _MILLI)
    return row


def _day(run: Document) -> str | None:
    """Turn vLLM's ``20261121-093000`` into an ISO date."""
    match = re.match(r"(\d{4})(\d{2})(\d{2})-", text(run, "date") or "")
    return "-".join(match.groups()) if match else None
