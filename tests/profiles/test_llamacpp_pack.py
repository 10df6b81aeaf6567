"""What the shipped pack ``llamacpp-cpu`` claims to hold, and the trends that the studies report, in its numbers."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from statistics import fmean, median
from typing import Any

from qplan.profiles.packs import read_pack

BY_BITS = ("FP16", "Q8_0", "Q6_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K")  # Q5_0 lies within the noise of Q4_K
SCHEMES = (*BY_BITS, "Q5_0")
MIXES = ("isl=16,osl=8", "isl=32,osl=4")


@cache
def rows() -> tuple[dict[str, Any], ...]:
    return tuple(row for row in read_pack("llamacpp-cpu").table.to_pylist() if row["status"] == "ok")


def score(quantization: str, metric: str) -> float:
    (found,) = (row["score"] for row in rows() if (row["quantization"], row["metric"]) == (quantization, metric))
    return float(found)


def test_every_combination_has_its_loads_its_saturation_and_its_quality() -> None:
    loads: dict[tuple[str, str], set[float]] = defaultdict(set)
    searches: dict[tuple[str, str], set[int]] = defaultdict(set)
    metrics: dict[str, set[str]] = defaultdict(set)
    for row in rows():
        if row["phase"] == "serving":
            loads[row["quantization"], row["workload"]].add(row["offered_qps"])
        elif row["phase"] == "saturation":
            searches[row["quantization"], row["workload"]].add(row["repeat"])
        else:
            metrics[row["quantization"]].add(row["metric"])
    names = [f"{scheme}{cache}" for scheme in SCHEMES for cache in ("", "-KV8-INT")]
    for name in names:
        assert {"perplexity", "accuracy"} <= metrics[name]
        assert name == "FP16" or {"kl_divergence", "top1_agreement"} <= metrics[name]
        for mix in MIXES:
            assert searches[name, mix] == {0, 1}
            assert len(loads[name, mix]) >= 5


def test_fewer_bits_lose_more() -> None:
    divergences = [score(name, "kl_divergence") for name in BY_BITS[1:]]
    assert divergences == sorted(divergences)
    agreements = [score(name, "top1_agreement") for name in BY_BITS[1:]]
    assert agreements == sorted(agreements, reverse=True)
    assert score("Q2_K", "perplexity") > 3 * score("FP16", "perplexity")
    assert abs(score("Q8_0", "perplexity") / score("FP16", "perplexity") - 1) < 0.02


def test_fewer_bits_serve_more() -> None:
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows():
        if row["phase"] == "saturation" and row["saturation_qps"] is not None:
            found[row["quantization"].removesuffix("-KV8-INT")].append(row["saturation_qps"])
    mean = {name: fmean(rates) for name, rates in found.items()}
    assert mean["FP16"] < mean["Q8_0"]
    assert min(mean["Q4_0"], mean["Q3_K"]) > 1.5 * mean["FP16"]


def test_latency_at_low_load_follows_the_weights() -> None:
    lowest: dict[str, list[float]] = defaultdict(list)
    for name in ("FP16", "Q4_0"):
        for repeat in (0, 1):
            for mix in MIXES:
                runs = [
                    row
                    for row in rows()
                    if (row["quantization"], row["phase"], row["workload"], row["repeat"])
                    == (name, "serving", mix, repeat)
                ]
                lowest[name].append(min(runs, key=lambda row: row["offered_qps"])["ttft_p50_s"])
    assert median(lowest["Q4_0"]) < 0.7 * median(lowest["FP16"])
