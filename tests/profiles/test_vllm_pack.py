"""What the shipped pack ``vllm-cpu`` claims to hold."""

from __future__ import annotations

from collections import Counter
from functools import cache
from statistics import fmean
from typing import Any

from qplan.profiles.packs import read_pack

MIXES = ("isl=16,osl=8", "isl=32,osl=4")


@cache
def rows() -> tuple[dict[str, Any], ...]:
    return tuple(row for row in read_pack("vllm-cpu").table.to_pylist() if row["status"] == "ok")


def test_what_the_cpu_has_kernels_for_has_loads_saturation_and_quality() -> None:
    loads: Counter[tuple[str, str]] = Counter()
    for row in rows():
        if row["phase"] == "serving":
            loads[row["quantization"], row["workload"]] += 1
    assert set(loads) == {(name, mix) for name in ("BF16", "W8A8-INT") for mix in MIXES}
    assert min(loads.values()) >= 9  # two repeats of five loads; one had no request after its warm-up
    judged = {(row["quantization"], row["metric"]) for row in rows() if row["phase"] == "quality"}
    for metric in ("perplexity", "accuracy"):
        assert {("BF16", metric), ("W8A8-INT", metric)} <= judged
    assert any(name == "W8A8-INT" and "kl" in metric for name, metric in judged)


def test_eight_bits_serve_more_where_sixteen_are_emulated() -> None:
    for mix in MIXES:
        mean = {
            name: fmean(
                row["saturation_qps"]
                for row in rows()
                if (row["phase"], row["workload"], row["quantization"]) == ("saturation", mix, name)
                and row["saturation_qps"] is not None
            )
            for name in ("BF16", "W8A8-INT")
        }
        assert mean["W8A8-INT"] > mean["BF16"]
