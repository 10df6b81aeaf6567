"""Hugging Face Transformers with continuous batching, in an environment of its own that ``QPLAN_TRANSFORMERS`` names.

The server is that of ``transformers serve`` (5.17), quantized by torchao when it loads: FP8 weights and activations,
and 8- and 4-bit weights, with PyTorch's kernels. It is there wherever PyTorch is, which the faster engines are not.
"""

from __future__ import annotations

from pathlib import Path

from qplan.core.errors import nearest
from qplan.core.quantization import KV16
from qplan.measure.engines import transformers_server
from qplan.measure.engines.checkpoints import prepare_checkpoint, weights_refusal
from qplan.measure.engines.checkpoints_random import make_random_checkpoint
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.own_environment import (
    common_refusal,
    find_program,
    flag_list,
    installed_version,
    interpreter,
    known_gpus,
    visible,
)
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process
from qplan.measure.engines.random_model import RANDOM, random_refusal, random_shape

_DTYPES = {"BF16": "bfloat16", "FP16": "float16"}
_ON_LOADING = {"W8A8-FP": "float8", "W8A8-INT": "int8", "W8A16": "int8-weights", "W4A16": "int4-weights"}
_ON_CPU = ("BF16", "FP16", "W8A8-INT", "W8A16")
_SETTINGS = ("max-batch-tokens", "attn-implementation", "use-cuda-graph", "compile-level")


class TransformersServe:
    """Adapter of Transformers' continuous batching.

    Prompts are not reused between requests, so that every one is computed, and the end-of-sequence token is ignored: a
    load generates the tokens that it asks for. Quality cannot be judged, as log-probabilities are not served.
    """

    name = "transformers"

    def version(self) -> str:
        """Return the version of Transformers in its environment."""
        return installed_version(_program(), "transformers")

    def refusal(self, serving: Serving) -> str | None:
        """Say why Transformers cannot serve this, or return ``None``."""
        quantization = serving.quantization
        schemes = (*_DTYPES, *_ON_LOADING) if serving.devices else _ON_CPU
        where = "transformers" if serving.devices else "transformers on a CPU"
        if quantization.scheme not in schemes:
            near = nearest(quantization.scheme, schemes)
            return f"{where} has no kernels for {quantization.scheme}; it has {', '.join(schemes)}{near}"
        if quantization.kv != KV16:
            return "transformers has no quantized KV cache with continuous batching"
        if serving.tp != 1:
            return f"transformers is started on one GPU; tp is {serving.tp}"
        for flag in serving.settings:
            if flag not in _SETTINGS:
                return f"transformers has no setting '{flag}'{nearest(flag, _SETTINGS)}"
        return common_refusal("transformers", serving, known_gpus(serving.devices)) or (
            random_refusal(serving) if _is_random(serving) else weights_refusal(serving, schemes)
        )

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        """Find a checkpoint of 16 bits, or make one of a GGUF file or of random weights; it is quantized on loading."""
        shape = random_shape(serving)
        if shape is not None:
            return make_random_checkpoint(shape, cache / "checkpoints")
        return prepare_checkpoint(serving, cache / "checkpoints", ())

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        """Start the server and wait until it really serves."""
        return start_process(self.launch(serving, prepared), folder=folder, deadline_s=deadline_s)

    def launch(self, serving: Serving, prepared: Prepared) -> Launch:
        """Return the command for `serving`; the server knows the model by the path of its weights."""
        scheme = serving.quantization.scheme
        flags: dict[str, str | int | float | bool] = {
            "port": PORT,
            "device": "cuda:0" if serving.devices else "cpu",
            "dtype": _DTYPES.get(scheme, "bfloat16"),
            "quantization": _ON_LOADING.get(scheme, False),
            "max-sequences": serving.max_sequences,
            "context": serving.context_tokens,
            **{name: _text(value) for name, value in serving.settings.items()},
        }
        # -P: else the other modules of this folder would stand before packages of the same names, such as vllm
        argv = [str(interpreter(_program())), "-P", transformers_server.__file__, prepared.weights, *flag_list(flags)]
        env = {**visible(serving.devices), "HF_HUB_OFFLINE": "1"}
        return Launch(tuple(argv), prepared.weights, self.version(), env, metrics=None, meaningful=prepared.meaningful)


def _is_random(serving: Serving) -> bool:
    return serving.weights.partition(":")[0] == RANDOM


def _program() -> Path:
    return find_program("Transformers", "QPLAN_TRANSFORMERS", "python3", "pip install 'transformers[serving]' torchao")


def _text(value: str | int | float | bool) -> str | int | float:
    """Return a setting as the server's flag takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value
