"""``trtllm-serve`` of TensorRT-LLM 1.2, in its own environment or container, with the PyTorch backend.

``QPLAN_TRTLLM`` names its ``trtllm-serve``; else that is searched for. Weights come quantized, by NVIDIA ModelOpt: the
checkpoint's ``hf_quant_config.json`` is read and held against what was asked, since the engine follows the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qplan.core.quantization import KV16, NumberFormat, Quantization
from qplan.measure.engines.checkpoints import declared, locate, prepare_checkpoint, weights_refusal
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.own_environment import (
    common_refusal,
    find_program,
    flag_list,
    installed_version,
    known_gpus,
    own_flag_refusal,
    visible,
)
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process

_KV_DTYPES = {KV16: "auto", NumberFormat(8, "float"): "fp8"}
_DTYPES = {"BF16": "bfloat16", "FP16": "float16"}
KERNELS = (*_DTYPES, "W8A8-FP", "W4A4-FP", "W4A16-AWQ", "W4A8-FP", "W8A16", "W4A16")
"""What the PyTorch backend has: tensorrt_llm/_torch/modules/linear.py; SmoothQuant and QServe went with the old one."""
_OWN_FLAGS = {
    "host": "the adapter",
    "port": "the adapter",
    "backend": "the adapter",
    "config": "the adapter",
    "extra_llm_api_options": "the adapter",
    "tp_size": "the tensor parallelism",
    "tensor_parallel_size": "the tensor parallelism",
    "max_seq_len": "the context",
    "max_batch_size": "the number of sequences",
}
_KV_SHARE = "kv_cache_free_gpu_memory_fraction"


class TrtLlm:
    """Adapter of ``trtllm-serve``.

    What is set besides the configuration: no reuse of KV blocks between requests, so that every prompt is computed;
    iteration and request statistics, which ``/metrics`` needs. The flag ``kv_cache_free_gpu_memory_fraction`` may be
    among the settings; it goes to the file with the rest of the KV cache, because what the file says of the cache
    replaces the flag.
    """

    name = "trtllm"

    def version(self) -> str:
        """Return the version of TensorRT-LLM in its environment."""
        return installed_version(_program(), "tensorrt_llm")

    def refusal(self, serving: Serving) -> str | None:
        """Say why TensorRT-LLM cannot serve this, or return ``None``."""
        quantization = serving.quantization
        if not serving.devices:
            return "trtllm needs GPUs; no devices are given"
        if quantization.scheme not in KERNELS:
            return f"trtllm's PyTorch backend has no {quantization.scheme}; it has {', '.join(KERNELS)}"
        if quantization.kv not in _KV_DTYPES:
            kv = f"{quantization.kv.bits}-bit {quantization.kv.kind}"
            return f"trtllm's PyTorch backend has no {kv} KV cache; it has KV8-FP"
        return (
            own_flag_refusal("trtllm", serving, _OWN_FLAGS)
            or common_refusal("trtllm", serving, known_gpus(serving.devices))
            or weights_refusal(serving, tuple(_DTYPES))
            or _misread(serving)
        )

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        """Find the checkpoint; only 16-bit ones are made, from GGUF."""
        return prepare_checkpoint(serving, cache / "checkpoints", ())

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        """Start the server and wait until it really serves."""
        return start_process(self.launch(serving, prepared, folder), folder=folder, deadline_s=deadline_s)

    def launch(self, serving: Serving, prepared: Prepared, folder: Path) -> Launch:
        """Return the command for `serving`; the file of further options is written into `folder`."""
        settings = dict(serving.settings)
        options = format_options(serving.quantization)
        options["kv_cache_config"] |= {
            "enable_block_reuse": False,
            "free_gpu_memory_fraction": settings.pop(_KV_SHARE, 0.9),
        }
        options |= {
            "enable_iter_perf_stats": True,
            "return_perf_metrics": True,
        }
        folder.mkdir(parents=True, exist_ok=True)
        config = (folder / "trtllm.yaml").absolute()
        config.write_text(json.dumps(options, indent=1), encoding="utf-8")  # every JSON text is YAML
        flags: dict[str, str | int | float | bool] = {
            "host": "127.0.0.1",
            "port": PORT,
            "backend": "pytorch",
            "tp_size": serving.tp,
            "max_batch_size": serving.max_sequences,
            "max_seq_len": serving.context_tokens,
            "config": str(config),
            **settings,
        }
        return Launch(
            (str(_program()), prepared.weights, *flag_list(flags)),
            Path(prepared.weights).name,  # trtllm-serve names the model after its folder
            self.version(),
            visible(serving.devices),
            # /health says 200 while the runtime hangs (TensorRT-LLM pull request 3856); this one makes a token. Where
            # a rank has crashed both say 503 for good (issue 18663).
            health="/health_generate",
        )


def format_options(quantization: Quantization) -> dict[str, Any]:
    """Return what the file of further options says of a quantization.

    Raises
    ------
    KeyError
        When the PyTorch backend has no such KV cache.
    """
    return {
        "dtype": _DTYPES.get(quantization.scheme, "auto"),
        "kv_cache_config": {"dtype": _KV_DTYPES[quantization.kv]},
    }


def _program() -> Path:
    return find_program("TensorRT-LLM", "QPLAN_TRTLLM", "trtllm-serve", "pip install tensorrt-llm")


def _misread(serving: Serving) -> str | None:
    """Refuse integer checkpoints of compressed-tensors: TensorRT-LLM takes any 8 bits in that format for FP8."""
    folder = locate(serving.weights)
    said = declared(folder) if folder is not None else None
    if said is None or said.writer != "compressed-tensors" or said.weights is None or said.weights.kind == "float":
        return None
    return f"trtllm reads FP8 and FP4 from compressed-tensors checkpoints; {folder} is {said.name}"
