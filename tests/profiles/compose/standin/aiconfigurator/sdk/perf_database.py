"""A table of one GPU: memory and operations at peak, no kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PerfDatabase:
    system_spec: dict[str, dict[str, float]]

    def milliseconds(self, operations: float, moved_bytes: float) -> float:
        return 0.005 + max(operations / 3e11, moved_bytes / 2e9)


def get_database(system: str, backend: str, version: str) -> PerfDatabase | None:
    if system == "broken" or backend != "trtllm":
        return None
    capacity = 48305799168.0 if system == "l40s" else 85899345920.0
    return PerfDatabase({"gpu": {"mem_capacity": capacity}})
