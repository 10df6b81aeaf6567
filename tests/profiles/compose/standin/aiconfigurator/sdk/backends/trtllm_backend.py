"""Memory of a GPU, and a run of one batch, which the worker's sums are checked against."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiconfigurator.sdk.config import RuntimeConfig
    from aiconfigurator.sdk.models import LLAMAModel
    from aiconfigurator.sdk.perf_database import PerfDatabase


class Summary:
    def __init__(self, context: dict[str, float], generation: dict[str, float], memory: dict[str, float]) -> None:
        self._context, self._generation, self._memory = context, generation, memory

    def get_context_latency_dict(self) -> dict[str, float]:
        return self._context

    def get_generation_latency_dict(self) -> dict[str, float]:
        return self._generation


class TRTLLMBackend:
    def run_static(
        self, model: LLAMAModel, database: PerfDatabase, runtime_config: RuntimeConfig, mode: str
    ) -> Summary:
        batch, isl, osl = runtime_config.batch_size, runtime_config.isl, runtime_config.osl
        if mode == "static_ctx":
            context, logits = {}, model.context_ops[-1]
            for operation in model.context_ops:
                x = batch if operation is logits else batch * isl
                context[operation._name] = operation.query(database, x=x, batch_size=batch, beam_width=1, s=isl)
            return Summary(context, {}, self._get_memory_usage(model, database, batch, 1, isl, 1))
        assert mode == "static_gen"
        assert osl == 2, "one step"
        generation = {
            operation._name: operation.query(database, x=batch, batch_size=batch, beam_width=1, s=isl + 1)
            for operation in model.generation_ops
        }
        return Summary({}, generation, self._get_memory_usage(model, database, batch, 1, isl, osl, batch))

    def _get_memory_usage(
        self,
        model: LLAMAModel,
        database: PerfDatabase,
        batch_size: int,
        beam_width: int,
        isl: int,
        osl: int,
        num_tokens: int = 0,
    ) -> dict[str, float]:
        gib = 2**30
        weights = sum(operation.get_weights() for operation in model.context_ops) / gib
        kv_cache = batch_size * (isl + beam_width * osl) * model.kv_bytes_per_token / gib
        activations = (num_tokens or batch_size * isl) * 200_000 / gib
        memory = {"weights": weights, "activations": activations, "kvcache": kv_cache, "nccl": 0.25, "others": 3.5}
        return {"total": sum(memory.values()), **memory}
