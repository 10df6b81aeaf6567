"""The pack's card: what it is, how it was made, what it holds, what to know before its numbers are used."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qplan.core.units import GIB
from qplan.profiles.compose import request
from qplan.profiles.compose.rows import PROVENANCE, Composed
from qplan.profiles.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "trtllm-composed"

ENGINE_VERSION_NOTE = (
    "H100 and H200 have tables of 1.0.0rc3 and 1.2.0rc5. The pack uses 1.0.0rc3: the age of the only "
    "tables of A100 and L40S, so that GPUs are not compared across engine versions, and no further from"
    " end-to-end rows. Error of TPOT as decode step + concurrency x prefill / output tokens, mean of "
    "absolute values over the rows of aiconfigurator-core 0.12.0's silicon_sample.csv: Llama-3.1-8B on "
    "H100 (177 rows) 7.5 % with 1.0.0rc3 and 7.7 % with 1.2.0rc5, Llama-3.1-70B FP8 on H200 (72 rows) "
    "31.0 % and 31.6 %."
)

NOTES = (
    "Composed, not measured end to end: each time is the sum of kernel times that NVIDIA measured one "
    "by one (GEMM, attention, all-reduce) and of modelled memory operations (norms, activations, "
    "embedding). Host time, scheduling and sampling are not in it.",
    "BF16 rows use the tables of float16 GEMMs and float16 attention.",
    "W8A16 is TensorRT-LLM's int8 weight-only GEMM, W4A16 int4 weight-only, W8A8-INT SmoothQuant. "
    "W8A8KV8-FP computes attention in FP8; the other KV8-FP rows compute it in float16 on an FP8 cache."
    " A100 has no FP8 rows: it has no FP8 kernels. The output head is a float16 GEMM in every row.",
    "On Hopper the FP8 GEMM tables hold 8 to 10 microseconds a call that do not shrink with the GEMM "
    "(8192 x 1024, one token, H200: 15.7, against 7.2 in float16), which an engine hides in part: "
    "decode times of FP8 are too high at small batch, and the more so the higher TP is. Without 10 "
    "microseconds a GEMM the error of TPOT of Llama-3.1-70B FP8 on H200 would be 10 instead of 31 %.",
    "On L40S decode attention on an FP8 cache is several times slower up to batch 8 than at batch 16.",
    "prefill: one iteration over `batch` prompts of `input_tokens` each. decode: one iteration that "
    "adds a token to `batch` sequences with `context_tokens` in the KV cache each.",
    "memory_bytes: weights, the activations of that iteration, the KV cache it needs, NCCL buffers and "
    "3.5 GiB of CUDA context and workspace, on each GPU. Scales of quantized weights are not counted.",
    "Points whose memory does not fit are left out. A deployment of which not even one short sequence "
    "fits has one row, with status oom.",
    "Times are made to rise with batch and length by the smallest change that does it: the geometric "
    "mean of the running maximum and of the running minimum from the far end. `repaired` counts what "
    "that changed.",
)


def card(parts: Sequence[Composed], date: str) -> dict[str, Any]:
    """Return the card of the pack that `parts` make, in the order of its JSON.

    Parameters
    ----------
    date
        Day on which the pack was made, ISO 8601.
    """
    return {
        "name": NAME,
        "schema_version": SCHEMA_VERSION,
        "title": "Step times of Llama models under TensorRT-LLM, composed from NVIDIA's kernel measurements",
        "provenance": PROVENANCE,
        "licence": "Apache-2.0",
        "date": date,
        "made_by": "python -m qplan.profiles.compose",
        "made_from": {
            "package": request.PACKAGE,
            "version": request.VERSION,
            "licence": "Apache-2.0",
            "tables": [f"{p.system.name}/{request.ENGINE}/{p.system.tables}" for p in parts],
        },
        "known_error": None,
        "engine": request.ENGINE,
        "engine_version_note": ENGINE_VERSION_NOTE,
        "rows": sum(p.rows.num_rows for p in parts),
        "deployments": sum(p.deployments for p in parts),
        "oom_deployments": sum(len(p.oom) for p in parts),
        "gpus": {
            p.system.gpu: {
                "engine_version": p.system.tables,
                "memory_gib": round(p.capacity_bytes / GIB, 2),
                "rows": p.rows.num_rows,
                "deployments": p.deployments,
                "oom": list(p.oom),
                "repaired": {phase: asdict(repaired) for phase, repaired in p.repaired.items()},
            }
            for p in parts
        },
        "notes": list(NOTES),
    }
