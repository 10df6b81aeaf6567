"""``transformers serve`` as a program that also quantizes: run by the Python of its own environment, by its path.

``transformers serve`` knows no quantization but bitsandbytes. The server here is put together from the same parts, and
loads the model with a configuration of torchao, whose kernels are PyTorch's. Of qplan nothing is imported.

``python transformers_server.py MODEL --port 8000 --quantization float8 --max-sequences 64 --context 2048``
"""

from __future__ import annotations

import argparse
import math
from importlib import import_module
from typing import Any

QUANTIZATIONS = {
    "float8": ("Float8DynamicActivationFloat8WeightConfig", {}),
    "int8": ("Int8DynamicActivationInt8WeightConfig", {}),
    "int8-weights": ("Int8WeightOnlyConfig", {}),
    "int4-weights": ("Int4WeightOnlyConfig", {"group_size": 128, "int4_packing_format": "tile_packed_to_4d"}),
}
"""Names to configurations of ``torchao.quantization`` and their arguments; this packing has PyTorch's own kernel."""

_BLOCK_TOKENS = 256  # the default of ContinuousBatchingConfig


def main(arguments: list[str] | None = None) -> None:
    """Load a model and serve it until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="transformers_server", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=QUANTIZATIONS)
    parser.add_argument("--max-sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--max-batch-tokens", type=int, default=2048)  # left alone it fills the memory with buffers
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument("--use-cuda-graph", choices=("on", "off"))
    parser.add_argument("--compile-level", type=int, default=0, choices=range(4))
    given = parser.parse_args(arguments)

    import_module("transformers").logging.set_verbosity_error()  # a warning a request otherwise
    app = _app(given)
    import_module("uvicorn").run(app, host=given.host, port=given.port, log_level="warning", access_log=False)


def _app(given: argparse.Namespace) -> Any:
    """Return the application of ``transformers serve`` around a model that is loaded as asked."""
    serving = "transformers.cli.serving"
    manager = _manager(given)
    state = import_module(f"{serving}.utils").GenerationState(continuous_batching=True, cb_config=_batching(given))
    handlers = {
        name: getattr(import_module(f"{serving}.{module}"), kind)(manager, state)
        for name, module, kind in (
            ("completion_handler", "completion", "CompletionHandler"),
            ("response_handler", "response", "ResponseHandler"),
        )
    }
    chat = import_module(f"{serving}.chat_completion").ChatCompletionHandler(manager, state)
    heard = import_module(f"{serving}.transcription").TranscriptionHandler(manager, state)
    build = import_module(f"{serving}.server").build_server
    return build(manager, chat, transcription_handler=heard, generation_state=state, **handlers)


def _manager(given: argparse.Namespace) -> Any:
    """Load the model, quantized, which then generates as many tokens as it is asked for."""
    base: Any = import_module("transformers.cli.serving.model_manager").ModelManager

    class Manager(base):  # type: ignore[misc]
        def get_quantization_config(self) -> Any:
            if given.quantization is None:
                return None
            name, options = QUANTIZATIONS[given.quantization]
            config = getattr(import_module("torchao.quantization"), name)(**options)
            return import_module("transformers").TorchAoConfig(config)

        def _load_model(self, *arguments: Any, **options: Any) -> Any:
            model = super()._load_model(*arguments, **options)
            # The server takes no `ignore_eos`: without this a load would generate fewer tokens than it asks for.
            model.generation_config.eos_token_id = None
            model.config.eos_token_id = None
            return model

    return Manager(
        device=given.device, dtype=given.dtype, attn_implementation=given.attn_implementation, force_model=given.model
    )


def _batching(given: argparse.Namespace) -> Any:
    """Return a configuration whose KV cache holds every sequence at its longest, and in which no prompt is reused."""
    options: dict[str, Any] = {
        "block_size": _BLOCK_TOKENS,
        "num_blocks": given.max_sequences * math.ceil(given.context / _BLOCK_TOKENS) + 1,
        "max_requests_per_batch": given.max_sequences,
        "max_batch_tokens": given.max_batch_tokens,
        "allow_block_sharing": False,
        "default_compile_level": given.compile_level,
    }
    if given.use_cuda_graph is not None:
        options["use_cuda_graph"] = given.use_cuda_graph == "on"
    return import_module("transformers").ContinuousBatchingConfig(**options)


if __name__ == "__main__":
    main()
