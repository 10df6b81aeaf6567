"""Sum kernel times into iteration times, in the environment that has aiconfigurator; never imports qplan.

``python worker.py REQUEST.json RESULT.npz`` prints a line for each deployment that it has done.

The sums are those of ``aiconfigurator.sdk.backends.base_backend.BaseBackend.run_static``, unrounded: the
time of an iteration is the sum over the model's operations, each looked up in the kernel tables of one GPU. An
operation sees all tokens of the iteration, except the output head, which sees one a sequence.
"""

from __future__ import annotations

import json
import logging
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]


def compose(request: dict[str, Any], done: Callable[[], None] = lambda: None) -> dict[str, Floats]:
    """Compose every deployment of a request.

    Parameters
    ----------
    request
        As :func:`qplan.profiles.compose.request.worker_request` writes it: D deployments on one GPU, prefill
        batches (A,) and tokens (P,), decode batches (B,) and contexts (C,).
    done
        Called after each deployment.

    Returns
    -------
    dict of str to array
        ``prefill_s`` and ``prefill_bytes`` (D, A, P), ``decode_s`` and ``decode_bytes`` (D, B, C): time of an
        iteration in seconds and memory on each GPU in bytes, NaN outside the model's context or the tokens of
        one iteration. ``weights_bytes`` and ``reserve_bytes`` (D,): weights, and CUDA context with NCCL buffers,
        on each GPU. ``capacity_bytes`` (): memory of the GPU.

    Raises
    ------
    SystemExit
        The kernel tables of the GPU cannot be read.
    """
    from aiconfigurator.sdk.backends.trtllm_backend import TRTLLMBackend
    from aiconfigurator.sdk.perf_database import get_database

    database = get_database(request["system"], request["engine"], request["tables"])
    if database is None:
        raise SystemExit(f"no {request['engine']} {request['tables']} tables for {request['system']}")
    backend = TRTLLMBackend()
    parts = []
    for deployment in request["deployments"]:
        parts.append(_compose_one(request, deployment, backend, database))
        done()
    result: dict[str, Floats] = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    result["capacity_bytes"] = np.array(float(database.system_spec["gpu"]["mem_capacity"]))
    return result


def _compose_one(request: dict[str, Any], deployment: dict[str, Any], backend: Any, database: Any) -> dict[str, Floats]:
    model = _model(deployment)
    longest = deployment["shape"]["context_length"]
    most = request["max_iteration_tokens"]
    batches, lengths = request["prefill_batches"], request["prefill_tokens"]
    prefill = np.full((len(batches), len(lengths), 2), np.nan)
    for (i, batch), (j, tokens) in product(enumerate(batches), enumerate(lengths)):
        if tokens <= longest and batch * tokens <= most:
            prefill[i, j] = _prefill(backend, model, database, batch, tokens)
    batches, lengths = request["decode_batches"], request["decode_contexts"]
    decode = np.full((len(batches), len(lengths), 2), np.nan)
    for (i, batch), (j, context) in product(enumerate(batches), enumerate(lengths)):
        if context <= longest:
            decode[i, j] = _decode(backend, model, database, batch, context)
    memory_gib = backend._get_memory_usage(model, database, 1, 1, 1, 1)
    return {
        "prefill_s": prefill[..., 0],
        "prefill_bytes": prefill[..., 1],
        "decode_s": decode[..., 0],
        "decode_bytes": decode[..., 1],
        "weights_bytes": np.array(memory_gib["weights"] * 2**30),
        "reserve_bytes": np.array((memory_gib["nccl"] + memory_gib["others"]) * 2**30),
    }


def _model(deployment: dict[str, Any]) -> Any:
    """Build the operations of a model from its shape; the package's catalogue of models is not needed."""
    from aiconfigurator.sdk import common, config
    from aiconfigurator.sdk.models import LLAMAModel

    modes = config.ModelConfig(
        tp_size=deployment["tp"],
        gemm_quant_mode=common.GEMMQuantMode[deployment["gemm"]],
        fmha_quant_mode=common.FMHAQuantMode[deployment["attention"]],
        kvcache_quant_mode=common.KVCacheQuantMode[deployment["kv_cache"]],
    )
    shape = deployment["shape"]
    return LLAMAModel(
        deployment["model"],
        "LLAMA",
        shape["num_layers"],
        shape["num_heads"],
        shape["num_kv_heads"],
        shape["head_size"],
        shape["hidden_size"],
        shape["inter_size"],
        shape["vocab_size"],
        shape["context_length"],
        modes,
    )


def _prefill(backend: Any, model: Any, database: Any, batch: int, tokens: int) -> tuple[float, float]:
    """Return seconds, and bytes on each GPU, of an iteration that prefills `batch` prompts of `tokens`."""
    milliseconds = sum(
        float(
            operation.query(
                database,
                x=batch if "logits_gemm" in operation._name else batch * tokens,
                batch_size=batch,
                beam_width=1,
                s=tokens,
                prefix=0,
            )
        )
        for operation in model.context_ops
    )
    memory_gib = backend._get_memory_usage(model, database, batch, 1, tokens, 1)
    return milliseconds / 1e3, memory_gib["total"] * 2**30


def _decode(backend: Any, model: Any, database: Any, batch: int, context: int) -> tuple[float, float]:
    """Return seconds, and bytes on each GPU, of an iteration that extends `batch` sequences of `context`."""
    milliseconds = sum(
        # The tables count the new token as part of the sequence.
        float(operation.query(database, x=batch, batch_size=batch, beam_width=1, s=context + 1))
        for operation in model.generation_ops
    )
    memory_gib = backend._get_memory_usage(model, database, batch, 1, context, 1, num_tokens=batch)
    return milliseconds / 1e3, memory_gib["total"] * 2**30


def main(request: str, result: str) -> None:
    """Compose the request in one file into another."""

    def done() -> None:
        sys.stdout.write("done\n")
        sys.stdout.flush()

    logging.disable(logging.WARNING)  # the package warns of every cell that its tables lack
    arrays: dict[str, Any] = compose(json.loads(Path(request).read_text(encoding="utf-8")), done)
    with Path(result).open("wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
