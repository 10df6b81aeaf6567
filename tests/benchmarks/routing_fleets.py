"""Fleets that the benchmarks of routing stand on: model, SLOs, and quantization, GPU, TP and count of each group."""

from __future__ import annotations

import sys

FLEETS = {
    "70B, 22 GPUs": (
        "llama-3.1-70b",
        "p90:ttft=2s, p90:tpot=100ms",
        (("BF16", "a100", 4, 2), ("BF16", "h100", 4, 1), ("W8A8KV8-FP", "h100", 2, 3), ("W4A16", "a100", 2, 2)),
    ),
    "34B, 12 GPUs": (
        "codellama-34b",
        "p90:ttft=2s, p90:tpot=100ms",
        (("BF16", "h100", 2, 2), ("W8A8KV8-FP", "h100", 1, 3), ("W4A16", "a100", 1, 5)),
    ),
    "8B, 8 GPUs": (
        "llama-3.1-8b",
        "p90:ttft=1s, p90:tpot=50ms",
        (("BF16", "a100", 1, 3), ("W8A8KV8-FP", "h100", 1, 3), ("W4A16", "a100", 1, 2)),
    ),
}


def show(text: str) -> None:
    sys.stdout.write(text + "\n")
