"""What engines say of themselves, read from their metrics routes.

llama.cpp, vLLM and SGLang answer in Prometheus' text format, each with names of its own; `trtllm-serve` answers JSON,
one object per iteration. The names tell them apart, so one reader serves every adapter, and a remote server whose
engine nobody named.
"""

from __future__ import annotations

import json
import re
from typing import Any

from qplan.measure.engines.contract import EngineState

_RUNNING = ("llamacpp:requests_processing", "vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING = ("llamacpp:requests_deferred", "vllm:num_requests_waiting", "sglang:num_queue_reqs")
_KV_USAGE = (
    "llamacpp:kv_cache_usage_ratio",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
)
# name, labels, value, and a timestamp that nobody here sends: prometheus.io/docs/instrumenting/exposition_formats
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})?\s+(\S+)")


def parse_prometheus(text: str) -> dict[str, list[float]]:
    """Return the samples of every metric of a Prometheus text, labels dropped; lines that are none are skipped."""
    samples: dict[str, list[float]] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        samples.setdefault(match[1], []).append(value)
    return samples


def read_state(text: str) -> EngineState:
    """Return what a metrics route says; every field ``None`` where it does not say.

    An engine of several data-parallel ranks names each metric once a rank: requests are summed, the KV cache counts as
    full as its fullest rank.
    """
    if text.lstrip().startswith(("[", "{")):
        return _read_trtllm(text)
    samples = parse_prometheus(text)
    running, waiting, kv_usage = (
        next((samples[name] for name in names if name in samples), None) for names in (_RUNNING, _WAITING, _KV_USAGE)
    )
    return EngineState(
        running=sum(running) if running else None,
        waiting=sum(waiting) if waiting else None,
        kv_usage=max(kv_usage) if kv_usage else None,
    )


def _read_trtllm(text: str) -> EngineState:
    """Read the last iteration of TensorRT-LLM's `/metrics`, which is empty when none ran since it was last asked."""
    try:
        last: Any = json.loads(text)
        if isinstance(last, list):
            last = last[-1]
        cache = last.get("kvCacheStats") or {}
        usage = cache["usedNumBlocks"] / cache["maxNumBlocks"] if cache.get("maxNumBlocks") else None
        return EngineState(last.get("numActiveRequests"), last.get("numQueuedRequests"), usage)
    except (ValueError, IndexError, AttributeError, KeyError, TypeError):
        return EngineState()
