"""What the pack composes: models, quantizations, GPUs, tensor parallelism, and the grid of iterations."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.core.model import Model

PACKAGE = "aiconfigurator"
VERSION = "0.6.0"
ENGINE = "trtllm"

MODELS = ("llama-2-7b", "llama-2-13b", "llama-2-70b", "codellama-34b", "llama-3.1-8b", "llama-3.1-70b")
TP = (1, 2, 4, 8)

# The grid has the sizes at which the kernel tables have rows (GEMMs: tokens of the iteration; attention: batch,
# and tokens of a sequence). Tables are read linearly between rows, so reading the pack linearly reads the tables.
PREFILL_BATCHES = (1, 2, 4, 8)
PREFILL_TOKENS = (
    *(16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768),
    *(1024, 2048, 4096, 6144, 8192, 10240, 12288, 14336, 16384),
)
MAX_ITERATION_TOKENS = 16384
DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
DECODE_CONTEXTS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A quantization and the kernel tables that time it, as aiconfigurator names their modes."""

    quantization: str
    gemm: str
    attention: str
    kv_cache: str


@dataclass(frozen=True, slots=True)
class System:
    """A GPU and the tables that time it.

    Attributes
    ----------
    gpu
        Name in qplan's catalogue.
    name, tables
        Name of the system in aiconfigurator, and the TensorRT-LLM version that its kernels were measured in.
    fp8
        Whether there are tables of FP8 GEMMs, FP8 attention and FP8 KV caches.
    """

    gpu: str
    name: str
    tables: str
    fp8: bool


SCHEMES = (
    Scheme("BF16", "float16", "float16", "float16"),
    Scheme("W8A16", "int8_wo", "float16", "float16"),
    Scheme("W4A16", "int4_wo", "float16", "float16"),
    Scheme("W8A8-INT", "sq", "float16", "float16"),
    Scheme("W8A8-FP", "fp8", "float16", "float16"),
    Scheme("BF16-KV8-FP", "float16", "float16", "fp8"),
    Scheme("W8A16-KV8-FP", "int8_wo", "float16", "fp8"),
    Scheme("W4A16-KV8-FP", "int4_wo", "float16", "fp8"),
    Scheme("W8A8-INT-KV8-FP", "sq", "float16", "fp8"),
    # With FP8 weights, activations and KV cache TensorRT-LLM computes attention in FP8 too.
    Scheme("W8A8KV8-FP", "fp8", "fp8", "fp8"),
)

# Hopper has tables of 1.2.0rc5 too; `card.ENGINE_VERSION_NOTE` says why these.
SYSTEMS = (
    System("A100-SXM4-80GB", "a100_sxm", "1.0.0", fp8=False),
    System("H100-SXM5-80GB", "h100_sxm", "1.0.0rc3", fp8=True),
    System("H200-SXM", "h200_sxm", "1.0.0rc3", fp8=True),
    System("L40S", "l40s", "1.0.0", fp8=True),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment to compose."""

    model: Model
    scheme: Scheme
    system: System
    tp: int


def candidates(system: System) -> tuple[Candidate, ...]:
    """Return the deployments of one GPU: those whose tables exist and whose heads divide among the GPUs."""
    return tuple(
        Candidate(model, scheme, system, tp)
        for model in map(Model.named, MODELS)
        for scheme in SCHEMES
        if system.fp8 or "fp8" not in (scheme.gemm, scheme.attention, scheme.kv_cache)
        for tp in TP
        if model.heads % tp == 0 and model.kv_heads % tp == 0
    )


def worker_request(of: tuple[Candidate, ...]) -> dict[str, object]:
    """Return what the worker is asked, as plain JSON values; all candidates are of one GPU."""
    (system,) = {candidate.system for candidate in of}
    return {
        "system": system.name,
        "engine": ENGINE,
        "tables": system.tables,
        "prefill_batches": PREFILL_BATCHES,
        "prefill_tokens": PREFILL_TOKENS,
        "max_iteration_tokens": MAX_ITERATION_TOKENS,
        "decode_batches": DECODE_BATCHES,
        "decode_contexts": DECODE_CONTEXTS,
        "deployments": [
            {
                "model": c.model.name,
                "shape": {
                    "num_layers": c.model.layers,
                    "num_heads": c.model.heads,
                    "num_kv_heads": c.model.kv_heads,
                    "head_size": c.model.head_dim,
                    "hidden_size": c.model.hidden_size,
                    "inter_size": c.model.intermediate_size,
                    "vocab_size": c.model.vocabulary,
                    "context_length": c.model.max_context,
                },
                "tp": c.tp,
                "gemm": c.scheme.gemm,
                "attention": c.scheme.attention,
                "kv_cache": c.scheme.kv_cache,
            }
            for c in of
        ],
    }
