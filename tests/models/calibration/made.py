"""Runs of an engine that does not exist: the shipped step times with other coefficients, served as modelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qplan.core import Deployment, Gpu, Model, Quantization, Workload
from qplan.models.calibration import Correction, corrected_steps
from qplan.models.fitted import load_fitted
from qplan.models.sharing import SharingModel

TPOT = Correction(("weights", "batching", "prefills", "step host"), (1.1, 1.5, 1.3, 0.5), (0.1,) * 4, 0, ())
TTFT = Correction(("prefill", "step", "host", "queue", "slots"), (1.1, 0.8, 12.0, 1.0, 1.0), (0.1,) * 5, 0, ())
RATES = (4.0, 14.0, 24.0, 32.0, 39.0)


def deployment(tp: int = 1, engine: str = "vllm", version: str = "0.12.0") -> Deployment:
    """Return the deployment that was measured."""
    return Deployment(Model.named("llama-3.1-8b"), Quantization.parse("BF16"), Gpu.named("h100"), tp, engine, version)


def chat() -> Workload:
    found = Workload.named("chat")
    assert found is not None
    return found


def engine(tp: int = 1) -> SharingModel:
    """Return the engine itself."""
    one = deployment(tp)
    return SharingModel.of([one], corrected_steps(load_fitted(None).steps.step_times([one]), TPOT, TTFT))


def runs(rates: Sequence[float] = RATES, tp: int = 1, **change: Any) -> list[dict[str, Any]]:
    """Return observations of open loops at `rates`, with 2 % of noise."""
    noise, served, found = np.random.default_rng(tp), engine(tp), []
    for rate in rates:
        loaded = served.at(chat(), np.array([rate]))
        ttft, tpot = (float(loaded.mean(m)[0] * np.exp(noise.normal(0, 0.02))) for m in ("ttft", "tpot"))
        found.append(
            {
                "model": "llama-3.1-8b",
                "quantization": "BF16",
                "gpu": "H100-SXM5-80GB",
                "tp": tp,
                "engine": "vllm",
                "engine_version": "0.12.0",
                "phase": "serving",
                "workload": "chat",
                "input_tokens": chat().mean_input_tokens,
                "output_tokens": chat().mean_output_tokens,
                "offered_qps": rate,
                "arrivals": "poisson",
                "repeat": 0,
                "status": "ok",
                "ttft_mean_s": ttft,
                "tpot_mean_s": tpot,
                "provenance": "measured",
                "source": "made up",
                **change,
            }
        )
    return found
