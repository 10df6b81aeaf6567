"""Made-up campaigns whose effects are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qplan.profiles.observations import from_rows

LOADS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
MIXES = {"isl=128,osl=256": (128.0, 256.0), "isl=1024,osl=32": (1024.0, 32.0)}
ABOUT = {
    "model": "llama-2-7b", "gpu": "H200-SXM", "tp": 1, "engine": "llamacpp", "engine_version": "1",
    "phase": "serving", "arrivals": "poisson", "status": "ok", "provenance": "measured", "driver": "580",
}  # fmt: skip

Effect = Callable[[str, str, float], float]
Campaign = Callable[..., pa.Table]


def _same(quantization: str, mix: str, qps: float) -> float:
    return 1.0


def campaign_rows(
    *,
    quantizations: tuple[str, ...] = ("F16", "Q4_K", "Q8_0", "Q8_0-KV8-INT"),
    mixes: tuple[str, ...] = tuple(MIXES),
    energy: Effect | None = None,
    ttft: Effect = _same,
    tpot: Effect = _same,
    repeats: int = 3,
    noise: float = 0.01,
    saturation: float = 100.0,
) -> Iterator[dict[str, Any]]:
    """Rows of every quantization, mix, load and repeat; effects multiply what 16 bits have."""
    draw = np.random.default_rng(3)
    for quantization in quantizations:
        for mix in mixes:
            prompt, generated = MIXES[mix]
            for qps in LOADS:
                for repeat in range(repeats):
                    scatter = np.exp(noise * draw.standard_normal(3))
                    tpot_s = 0.01 * (1 + qps / 40) * tpot(quantization, mix, qps) * scatter[0]
                    ttft_s = 1e-4 * prompt * (1 + qps / 40) * ttft(quantization, mix, qps) * scatter[1]
                    served = min(qps, saturation)
                    row = {
                        **ABOUT, "quantization": quantization, "workload": mix, "input_tokens": prompt,
                        "output_tokens": generated, "offered_qps": qps, "repeat": repeat, "requests": int(qps * 20),
                        "achieved_qps": served, "duration_s": 20.0, "ttft_p50_s": ttft_s, "ttft_mean_s": ttft_s,
                        "tpot_p50_s": tpot_s, "tpot_mean_s": tpot_s, "output_tokens_per_s": served * generated,
                        "source": f"campaign made-up point {quantization} {mix} {qps} {repeat}",
                    }  # fmt: skip
                    if energy is None:
                        yield {**row, "energy_note": "no energy counter: none was made up"}
                        continue
                    joules = served * generated * 20 * 0.3 * energy(quantization, mix, qps) * scatter[2]
                    yield {
                        **row, "energy_j": joules + 2000, "energy_polled_j": joules + 2000, "idle_power_w": 100.0,
                        "sm_clock_mean_mhz": 1900.0, "temperature_max_c": 60.0,
                    }  # fmt: skip


@pytest.fixture
def campaign() -> Campaign:
    """Make a table of :func:`campaign_rows`."""

    def make(**settings: Any) -> pa.Table:
        return from_rows(list(campaign_rows(**settings)), "made up")

    return make
