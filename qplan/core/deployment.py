"""A deployment: one replica's worth of model, quantization, GPUs and engine; and whether it fits.

Memory of one GPU, all in bytes::

    weights      (linear weights x bits_per_weight + other weights x 16 bit) / 8 / TP
    activations  the widest moment of one layer for the iteration's tokens, plus the logits
    runtime      CUDA context, engine workspace and NCCL buffers
    KV cache     a fraction (0.9) of what is left; 2 x layers x KV heads / TP x head size x KV bits / 8 a token

The 0.9 is TensorRT-LLM's ``kv_cache_free_gpu_memory_fraction``. KV heads that are fewer than TP are replicated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.units import GIB, format_bytes

RUNTIME_BYTES = 1.5 * GIB  # CUDA context, cuBLAS workspaces, engine buffers
NCCL_BYTES = 0.4 * GIB  # communicator buffers of a TP group
KV_FRACTION = 0.9
MAX_BATCHED_TOKENS = 8192  # TensorRT-LLM's default max_num_tokens: tokens of one iteration
MAX_SEQUENCES = 512  # sequences of one iteration: the largest batch of the composed tables


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU of a replica, and what the KV cache holds.

    Attributes
    ----------
    kv_bytes
        Room for the KV cache on one GPU; negative when the weights alone do not fit.
    kv_bytes_per_token
        KV cache of one token on one GPU.
    """

    capacity_bytes: float
    weights_bytes: float
    activation_bytes: float
    runtime_bytes: float
    kv_bytes: float
    kv_bytes_per_token: float

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of the replica holds; 0 when nothing fits."""
        return max(0, math.floor(self.kv_bytes / self.kv_bytes_per_token))

    @property
    def fits(self) -> bool:
        """Whether weights, activations and runtime leave room for a KV cache at all."""
        return self.kv_tokens > 0


@dataclass(frozen=True, slots=True)
class Deployment:
    """What one replica runs: the unit that is profiled, planned and routed to."""

    model: Model
    quantization: Quantization
    gpu: Gpu
    tp: int = 1
    engine: str = "trtllm"
    engine_version: str = ""

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise InputError(f"tensor parallelism is {self.tp}; expected at least 1 GPU")
        if self.model.heads % self.tp:
            raise InputError(f"{self.model.heads} attention heads of {self.model} do not divide among TP{self.tp}")

    @property
    def name(self) -> str:
        """Short name, unique within one engine version: ``llama-2-13b W4A16 A100-SXM4-80GB x2``."""
        return f"{self.model} {self.quantization} {self.gpu} x{self.tp}"

    @property
    def price_per_hour(self) -> float:
        """US dollars per replica and hour."""
        return self.tp * self.gpu.price_per_hour

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights of the model in this quantization, over all GPUs of the replica."""
        quantized = self.model.linear_parameters
        others = self.model.other_parameters
        if self.quantization.quantizes_embeddings:
            quantized, others = quantized + others, 0
        return (quantized * self.quantization.bits_per_weight + others * 16) / 8

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that a token takes on each GPU of the replica."""
        heads = math.ceil(self.model.kv_heads / self.tp)
        return 2 * self.model.layers * heads * self.model.head_dim * self.quantization.kv_bits_per_value / 8

    def memory(self) -> Memory:
        """Account for the memory of one GPU of the replica."""
        model, tp = self.model, self.tp
        widest_layer = (
            2 * model.hidden_size
            + (model.heads + 2 * model.kv_heads) * model.head_dim / tp
            + 3 * model.intermediate_size * model.experts_per_token / tp
        )
        activations = MAX_BATCHED_TOKENS * widest_layer * 2 + MAX_SEQUENCES * model.vocabulary * 4 / tp
        runtime = RUNTIME_BYTES + (NCCL_BYTES if tp > 1 else 0)
        free = self.gpu.memory_bytes - self.weight_bytes / tp - activations - runtime
        return Memory(
            capacity_bytes=self.gpu.memory_bytes,
            weights_bytes=self.weight_bytes / tp,
            activation_bytes=activations,
            runtime_bytes=runtime,
            kv_bytes=free * KV_FRACTION,
            kv_bytes_per_token=self.kv_bytes_per_token,
        )

    def refusal(self) -> str | None:
        """Say why this cannot run (kernels, memory), or return ``None`` when it can."""
        reason = self.quantization.refusal(self.gpu)
        if reason is not None:
            return reason
        memory = self.memory()
        if memory.fits:
            return None
        need = memory.weights_bytes + memory.activation_bytes + memory.runtime_bytes
        return (
            f"{self.name} does not fit: {format_bytes(memory.weights_bytes)} of weights and "
            f"{format_bytes(need - memory.weights_bytes)} of reserve on each GPU, which has "
            f"{format_bytes(memory.capacity_bytes)}"
        )

    def __str__(self) -> str:
        """Print the short name."""
        return self.name
