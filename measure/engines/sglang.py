"""SGLang 0.5, in an environment of its own: ``QPLAN_SGLANG`` names its Python, else ``python3`` is tried."""

from __future__ import annotations

from pathlib import Path

from qplan.core.quantization import KV16, NumberFormat, Quantization
from qplan.measure.engines.checkpoints import declared, prepare_checkpoint, weights_refusal
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.own_environment import (
    common_refusal,
    find_program,
    flag_list,
    installed_version,
    interpreter,
    known_gpus,
    own_flag_refusal,
    visible,
)
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process

_KV_DTYPES = {KV16: "auto", NumberFormat(8, "float"): "fp8_e4m3"}
_DTYPES = {"BF16": "bfloat16", "FP16": "float16"}
_MADE = ("W8A8-INT", "W4A16")
_ON_LOADING = {"W8A8-FP": "fp8"}
_OWN_FLAGS = {
    "model": "the weights",
    "model-path": "the weights",
    "served-model-name": "the model",
    "host": "the adapter",
    "port": "the adapter",
    "dtype": "the quantization",
    "quantization": "the quantization",
    "kv-cache-dtype": "the quantization",
    "tp": "the tensor parallelism",
    "tp-size": "the tensor parallelism",
    "tensor-parallel-size": "the tensor parallelism",
    "context-length": "the context",
    "max-running-requests": "the number of sequences",
}


class SgLang:
    """Adapter of ``python -m sglang.launch_server``.

    What is set unless :attr:`~qplan.measure.engines.contract.Serving.settings` says otherwise: metrics on; no radix
    cache, so that every prompt is computed.
    """

    name = "sglang"

    def version(self) -> str:
        """Return the version of SGLang in its environment."""
        return installed_version(_program(), "sglang")

    def refusal(self, serving: Serving) -> str | None:
        """Say why SGLang cannot serve this, or return ``None``."""
        quantization = serving.quantization
        if not serving.devices:
            return "sglang needs GPUs; no devices are given"
        if quantization.method == "gguf":
            return f"sglang is given Hugging Face checkpoints; {quantization.scheme} is a type of GGUF"
        if quantization.kv not in _KV_DTYPES:
            return f"sglang has no {quantization.kv.bits}-bit {quantization.kv.kind} KV cache; it has KV8-FP"
        return (
            own_flag_refusal("sglang", serving, _OWN_FLAGS)
            or common_refusal("sglang", serving, known_gpus(serving.devices))
            or weights_refusal(serving, (*_DTYPES, *_MADE, *_ON_LOADING))
        )

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        """Find or make a checkpoint that carries the quantization; FP8 is left to SGLang when it loads."""
        return prepare_checkpoint(serving, cache / "checkpoints", _MADE)

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        """Start the server and wait until it really serves."""
        return start_process(self.launch(serving, prepared), folder=folder, deadline_s=deadline_s)

    def launch(self, serving: Serving, prepared: Prepared) -> Launch:
        """Return the command for `serving`."""
        scheme = serving.quantization.scheme
        flags: dict[str, str | int | float | bool] = {
            "model-path": prepared.weights,
            "served-model-name": serving.model,
            "host": "127.0.0.1",
            "port": PORT,
            **format_flags(serving.quantization),
            "tp-size": serving.tp,
            "context-length": serving.context_tokens,
            "max-running-requests": serving.max_sequences,
            "disable-radix-cache": True,
            "enable-metrics": True,
        }
        if scheme in _ON_LOADING and declared(Path(prepared.weights)).is_16_bit:
            flags["quantization"] = _ON_LOADING[scheme]
        argv = (str(interpreter(_program())), "-m", "sglang.launch_server", *flag_list({**flags, **serving.settings}))
        return Launch(argv, serving.model, self.version(), visible(serving.devices))


def format_flags(quantization: Quantization) -> dict[str, str]:
    """Return the flags of `sglang.launch_server` that follow from a quantization, whatever the checkpoint.

    Raises
    ------
    KeyError
        When the engine has no such KV cache.
    """
    return {"dtype": _DTYPES.get(quantization.scheme, "auto"), "kv-cache-dtype": _KV_DTYPES[quantization.kv]}


def _program() -> Path:
    return find_program("SGLang", "QPLAN_SGLANG", "python3", "pip install sglang")
