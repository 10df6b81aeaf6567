"""Made-up serving rows, and a quick fit to them, for the tests of what is fitted to measured loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from qplan.models.fitting import Report, fit_rows
from qplan.profiles.observations import from_rows

MODELS = {"llama-2-7b": 1.0, "llama-2-13b": 1.8, "llama-3.1-8b": 1.1}
QUANTIZATIONS = {"BF16": 1.0, "W8A8-FP": 0.6}
MIXES = {"isl=512,osl=64": (512.0, 64.0), "isl=1024,osl=128": (1024.0, 128.0)}
LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)


def serving(model: str, quantization: str, mix: str, qps: float, scatter: float = 1.0) -> dict[str, object]:
    """Return a run whose latencies grow with size, bits, lengths and load."""
    prompt, generated = MIXES[mix]
    slow = MODELS[model] * QUANTIZATIONS[quantization] * scatter
    return {
        "model": model, "quantization": quantization, "gpu": "H100-SXM5-80GB", "tp": 1, "engine": "vllm",
        "engine_version": "0.9.0", "phase": "serving", "workload": mix, "arrivals": "poisson", "offered_qps": qps,
        "input_tokens": prompt, "output_tokens": generated, "repeat": 0, "status": "ok",
        "ttft_p50_s": 5e-5 * prompt * slow * (1 + qps / 10), "tpot_p50_s": 0.008 * slow * (1 + qps / 20),
        "output_tokens_per_s": qps * generated, "energy_note": "no energy counter", "provenance": "measured",
        "source": "made up",
    }  # fmt: skip


def saturation(model: str, quantization: str, mix: str, qps: float) -> dict[str, object]:
    """Return the outcome of a search for the highest rate."""
    kept = ("model", "quantization", "gpu", "tp", "engine", "engine_version", "workload", "arrivals", "input_tokens")
    run = serving(model, quantization, mix, qps)
    found = {"phase": "saturation", "saturation_qps": qps, "slo": "p90:ttft=1s", "repeat": 0, "status": "ok"}
    return {name: run[name] for name in (*kept, "output_tokens", "provenance", "source")} | found


def rows() -> list[dict[str, object]]:
    """Return runs of 3 models x 2 quantizations x 2 mixes at 5 loads, one search, and one run that failed."""
    draw = np.random.default_rng(4)
    runs = [
        serving(model, quantization, mix, qps, float(np.exp(0.05 * draw.standard_normal())))
        for model in MODELS
        for quantization in QUANTIZATIONS
        for mix in MIXES
        for qps in LOADS
    ]
    empty = dict.fromkeys(("ttft_p50_s", "tpot_p50_s", "output_tokens_per_s"))
    failed = {**runs[0], **empty, "repeat": 1, "status": "failed", "reason": "no request was due"}
    odd = {**runs[1], "repeat": 1, "ttft_p50_s": None}
    return [*runs, failed, odd, saturation("llama-2-7b", "BF16", "isl=512,osl=64", 6.0)]


def table(more: list[dict[str, object]] | None = None) -> pa.Table:
    """Return :func:`rows`, and more of them, as a store has them."""
    return from_rows([*rows(), *(more or [])], "made up")


@contextmanager
def quickly(judged: bool = True) -> Iterator[None]:
    """Fit with one candidate, few rounds and few folds; unless it is judged, nothing is left out to find errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qplan.models.load.selection.CANDIDATES", ("pooled-curves",))
        patch.setattr("qplan.models.load.curves.ROUNDS", 4)
        patch.setattr("qplan.models.fittingloads._FOLDS", 3)
        patch.setattr("qplan.models.heldout._PARTS", 2)
        if not judged:
            patch.setattr("qplan.models.heldout._left_out", lambda _: iter(()))
        yield


@cache
def report() -> tuple[Report, list[tuple[int, int]]]:
    """Return a quick fit to :func:`table`, and the progress that was told."""
    told: list[tuple[int, int]] = []
    with quickly():
        found = fit_rows(table(), "ours", None, lambda done, of: told.append((done, of)))
    return found, told
