from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qplan.profiles.observations import from_rows

# Bits per weight, saturation in req/s, perplexity and KL divergence: made up, in the order that real ones have.
SCHEMES = {
    "FP16": (16.0, 1.9, 12.34, None),
    "Q8_0": (8.5, 2.5, 12.44, 0.004),
    "Q6_K": (7.1, 2.7, 12.51, 0.009),
    "Q5_0": (6.1, 3.0, 13.57, 0.072),
    "Q4_K": (5.6, 3.3, 13.32, 0.060),
    "Q4_0": (4.9, 4.1, 15.46, 0.252),
    "Q3_K": (5.1, 3.2, 17.9, 0.408),
    "Q2_K": (4.3, 3.0, 65.0, 1.57),
}
WORKLOADS = {"chat": 1.0, "isl=64,osl=16": 2.2}
SLO = "p90:ttft=0.5s,p90:tpot=50ms"
LOADS = (0.2, 0.4, 0.6, 0.8, 0.95, 1.1)
SYSTEM = {
    "model": "SmolLM2-135M-Instruct",
    "gpu": "CPU",
    "tp": 1,
    "engine": "llamacpp",
    "engine_version": "b11549",
    "status": "ok",
    "provenance": "measured",
    "source": "made by a test",
    "host": "Some CPU, 2 cores",
    "measured_on": "2026-11-21",
    "command": '["server", "--port", "8000"]',
}


def campaign_rows(*, energy: bool = False, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Rows of 8 schemes x 2 KV formats x 2 workloads x 6 loads x 3 repeats, with searches and quality."""
    random = np.random.default_rng(seed)
    for scheme, (bits, saturation, perplexity, divergence) in SCHEMES.items():
        for kv, slower in (("", 1.0), ("-KV8-INT", 1.1)):
            base = {**SYSTEM, "quantization": scheme + kv, "bits_per_weight": bits}
            yield from _quality(base, perplexity, (divergence or 0) + (0.004 if kv else 0))
            for workload, faster in WORKLOADS.items():
                best = saturation * faster / slower
                for repeat in range(3):
                    about = {**base, "workload": workload, "slo": SLO, "arrivals": "poisson", "repeat": repeat}
                    found = best * random.normal(1, 0.04)
                    yield {
                        **about,
                        "phase": "saturation",
                        "saturation_qps": found,
                        "saturation_low_qps": found * 0.95,
                        "saturation_high_qps": found * 1.04,
                    }
                    for share in LOADS:
                        yield _serving(about, best, share, random, energy=energy)


def _quality(base: dict[str, Any], perplexity: float, divergence: float) -> Iterator[dict[str, Any]]:
    about = {**base, "phase": "quality", "repeat": 0, "task": "english", "items": 3060}
    yield {
        **about,
        "metric": "perplexity",
        "score": perplexity,
        "score_low": perplexity * 0.95,
        "score_high": perplexity * 1.05,
        "baseline_score": 12.34,
        "score_change": perplexity - 12.34,
        "score_change_low": perplexity - 12.9,
        "score_change_high": perplexity - 11.9,
    }
    yield {**about, "metric": "kl_divergence", "score": divergence, "score_low": divergence * 0.9}
    yield {**about, "metric": "top1_agreement", "score": max(0.4, 1 - divergence**0.5 / 2)}


def _serving(
    about: dict[str, Any], best: float, share: float, random: np.random.Generator, *, energy: bool
) -> dict[str, Any]:
    rate = round(best * share, 3)
    wait = 0.08 / max(1.15 - share, 0.05) * random.lognormal(0, 0.1)
    step = 0.015 * (1 + share) * random.lognormal(0, 0.05)
    row = {
        **about,
        "phase": "serving",
        "offered_qps": rate,
        "achieved_qps": rate * 0.99,
        "goodput_qps": rate * (0.99 if share < 1 else 0.7),
        "slo_attainment": 0.99 if share < 1 else 0.7,
        "output_tokens_per_s": rate * 32,
        "requests": 120,
        "failed_requests": 0 if share < 1 else 3,
        "duration_s": 60.0,
        "energy_note": "no energy counter: RAPL: no folder /sys/class/powercap",
    }
    for number, q in enumerate(("p50", "p90", "p95", "p99")):
        row |= {f"ttft_{q}_s": wait * (1 + 0.6 * number), f"tpot_{q}_s": step * (1 + 0.1 * number)}
    if energy:
        row |= {"energy_note": None, "idle_power_w": 60.0, "energy_j": (60 + 90 * share) * 60}
    return row


@pytest.fixture(scope="session")
def campaign() -> pa.Table:
    """A whole campaign without an energy counter."""
    return from_rows(list(campaign_rows()), "made")


@pytest.fixture(scope="session")
def campaign_with_energy() -> pa.Table:
    """The same with energy."""
    return from_rows(list(campaign_rows(energy=True)), "made")
