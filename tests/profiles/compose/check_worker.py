"""Run beside a package aiconfigurator, real or stand-in: what the worker sums must be what the package runs.

``python check_worker.py WORKER.py REQUEST.json MODELS.json`` compares each point of the request with ``run_static``
of the package's own model, named in MODELS for each deployment, and prints how many it compared.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

from aiconfigurator.sdk import common, config
from aiconfigurator.sdk.backends.trtllm_backend import TRTLLMBackend
from aiconfigurator.sdk.models import get_model
from aiconfigurator.sdk.perf_database import get_database


def main(worker_file: str, request_file: str, models_file: str) -> None:
    logging.disable(logging.WARNING)
    spec = importlib.util.spec_from_file_location("worker", worker_file)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    request: dict[str, Any] = json.loads(Path(request_file).read_text())
    composed = worker.compose(request)
    database = get_database(request["system"], request["engine"], request["tables"])
    backend: Any = TRTLLMBackend()
    compared = 0

    def run(model: Any, batch: int, isl: int, osl: int, mode: str) -> Any:
        runtime = config.RuntimeConfig(batch_size=batch, beam_width=1, isl=isl, osl=osl)
        return backend.run_static(model, database, runtime, mode)

    def same(found: float, milliseconds: dict[str, float], seconds_at: str) -> None:
        nonlocal compared
        expected = sum(milliseconds.values()) / 1e3
        assert math.isclose(found, expected, rel_tol=1e-12), (seconds_at, found, expected)
        compared += 1

    for d, (deployment, name) in enumerate(
        zip(request["deployments"], json.loads(Path(models_file).read_text()), strict=True)
    ):
        modes = config.ModelConfig(
            tp_size=deployment["tp"],
            gemm_quant_mode=common.GEMMQuantMode[deployment["gemm"]],
            fmha_quant_mode=common.FMHAQuantMode[deployment["attention"]],
            kvcache_quant_mode=common.KVCacheQuantMode[deployment["kv_cache"]],
        )
        model = get_model(name, modes, "trtllm")
        for i, batch in enumerate(request["prefill_batches"]):
            for j, tokens in enumerate(request["prefill_tokens"]):
                found = composed["prefill_s"][d, i, j]
                outside = (
                    tokens > deployment["shape"]["context_length"] or batch * tokens > request["max_iteration_tokens"]
                )
                assert math.isnan(found) == outside, (batch, tokens, found)
                if not outside:
                    summary = run(model, batch, tokens, 1, "static_ctx")
                    same(found, summary.get_context_latency_dict(), f"prefill {batch} x {tokens}")
                    gib = summary._memory["total"]
                    assert math.isclose(composed["prefill_bytes"][d, i, j], gib * 2**30, rel_tol=1e-12)
        for i, batch in enumerate(request["decode_batches"]):
            for j, context in enumerate(request["decode_contexts"]):
                found = composed["decode_s"][d, i, j]
                outside = context > deployment["shape"]["context_length"]
                assert math.isnan(found) == outside, (batch, context, found)
                if not outside:
                    summary = run(model, batch, context, 2, "static_gen")
                    same(found, summary.get_generation_latency_dict(), f"decode {batch} x {context}")
                    gib = run(model, batch, context - 1, 2, "static_gen")._memory["total"]
                    assert math.isclose(composed["decode_bytes"][d, i, j], gib * 2**30, rel_tol=1e-12)
    sys.stdout.write(f"{compared}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
