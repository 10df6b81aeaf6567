"""One model of a few operations, in the interface of the real package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiconfigurator.sdk.config import ModelConfig
    from aiconfigurator.sdk.perf_database import PerfDatabase

SupportedModels = {
    "LLAMA2_13B": (40, 40, 40, 128, 5120, 13824, 32000, 4096),
    "LLAMA3.1_70B": (80, 64, 8, 128, 8192, 28672, 128256, 131072),
}


class GEMM:
    def __init__(self, name: str, n: int, k: int, bytes_per_weight: float, layers: int) -> None:
        self._name, self._n, self._k, self._layers = name, n, k, layers
        self._weight_bytes = n * k * bytes_per_weight

    def query(self, database: PerfDatabase, *, x: int, **_: int) -> float:
        step: float = database.milliseconds(2 * x * self._n * self._k, self._weight_bytes)
        return self._layers * step

    def get_weights(self) -> float:
        return self._layers * self._weight_bytes


class Attention:
    def __init__(self, name: str, heads: int, bytes_per_token: float, layers: int) -> None:
        self._name, self._heads, self._bytes_per_token, self._layers = name, heads, bytes_per_token, layers

    def query(self, database: PerfDatabase, *, x: int, batch_size: int, beam_width: int, s: int, **_: int) -> float:
        operations = 4 * 128 * self._heads * x * beam_width * s
        step: float = database.milliseconds(operations, batch_size * s * self._bytes_per_token)
        return self._layers * step

    def get_weights(self) -> float:
        return 0.0


class LLAMAModel:
    def __init__(
        self,
        model_name: str,
        model_family: str,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
        hidden_size: int,
        inter_size: int,
        vocab_size: int,
        context_length: int,
        model_config: ModelConfig,
    ) -> None:
        assert model_family == "LLAMA"
        assert context_length > 0
        tp = model_config.tp_size
        self.model_name, self.config = model_name, model_config
        kv_heads = -(-num_kv_heads // tp)
        self.kv_bytes_per_token = 2 * num_layers * kv_heads * head_size * model_config.kvcache_quant_mode.value.memory
        per_layer = self.kv_bytes_per_token / num_layers
        memory = model_config.gemm_quant_mode.value.memory
        width = (num_heads + 2 * num_kv_heads) * head_size // tp + 3 * inter_size // tp
        heads = num_heads // tp * (2 if model_config.fmha_quant_mode.value.memory == 2 else 1)
        self.context_ops, self.generation_ops = (
            [
                GEMM(f"{phase}_gemm", width, hidden_size, memory, num_layers),
                Attention(f"{phase}_attention", heads, per_layer, num_layers),
                GEMM(f"{phase}_logits_gemm", vocab_size // tp, hidden_size, 2, 1),
            ]
            for phase in ("context", "generation")
        )


def get_model(model_name: str, model_config: ModelConfig, backend_name: str) -> LLAMAModel:
    assert backend_name == "trtllm"
    return LLAMAModel(model_name, "LLAMA", *SupportedModels[model_name], model_config)
