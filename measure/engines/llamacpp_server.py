"""llama.cpp's HTTP server as a program: ``python -m qplan.measure.engines.llamacpp_server --model m.gguf --port 8080``.

The package `xllamacpp` carries the server as a library only. The flags are those of llama.cpp's own `llama-server`, as
far as they change what is measured.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

GGML_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "f32", "bf16")
"""Types that llama.cpp takes for the KV cache."""

SWITCH = ("on", "off")

# flag: type or choices, attribute of xllamacpp's CommonParams
FLAGS: dict[str, tuple[Callable[[str], Any] | tuple[str, ...], str]] = {
    "alias": (str, "model_alias"),
    "host": (str, "hostname"),
    "port": (int, "port"),
    "ctx-size": (int, "n_ctx"),
    "parallel": (int, "n_parallel"),
    "batch-size": (int, "n_batch"),
    "ubatch-size": (int, "n_ubatch"),
    "threads": (int, "cpuparams.n_threads"),
    "threads-batch": (int, "cpuparams_batch.n_threads"),
    "poll": (int, "cpuparams.poll"),
    "threads-http": (int, "n_threads_http"),
    "gpu-layers": (int, "n_gpu_layers"),
    "cache-type-k": (GGML_TYPES, "cache_type_k"),
    "cache-type-v": (GGML_TYPES, "cache_type_v"),
    "flash-attn": (("on", "off", "auto"), "flash_attn_type"),
    "cache-prompt": (SWITCH, "cache_prompt"),
    "cont-batching": (SWITCH, "cont_batching"),
    "kv-unified": (SWITCH, "kv_unified"),
    "cache-ram": (int, "cache_ram_mib"),
}
"""Flags of the server besides ``--model``: what they take, and the parameter that they set."""


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="llamacpp_server", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    for flag, (takes, _) in FLAGS.items():
        if isinstance(takes, tuple):
            parser.add_argument(f"--{flag}", choices=takes)
        else:
            parser.add_argument(f"--{flag}", type=takes)
    given = vars(parser.parse_args(arguments))
    import xllamacpp

    if given["gpu_layers"] and not _gpus(xllamacpp):
        sys.exit("error: GPU layers are asked for, but this build of xllamacpp sees no GPU")
    params = xllamacpp.CommonParams()
    params.model.path = given["model"]
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.fit_params = False  # sizes are those asked for, not those that fit
    for flag, (_, attribute) in FLAGS.items():
        value = given[flag.replace("-", "_")]
        if value is not None:
            _set(xllamacpp, params, attribute, value)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        sys.exit(1)  # llama.cpp has said why
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201 - this is a program
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def _set(xllamacpp: Any, params: Any, attribute: str, value: Any) -> None:
    """Set one parameter from what its flag was given."""
    if attribute.startswith("cache_type"):
        value = xllamacpp.ggml_type[f"GGML_TYPE_{value.upper()}"]
    elif attribute == "flash_attn_type":
        value = {"on": 1, "off": 0, "auto": -1}[value]
        value = xllamacpp.llama_flash_attn_type(value)
    elif attribute == "model_alias":
        value = {value}
    elif attribute == "hostname":
        attribute, value = "hostnames", [value]
    elif value in SWITCH:
        value = value == "on"
    owner, _, name = attribute.rpartition(".")
    setattr(getattr(params, owner) if owner else params, name, value)


def _gpus(xllamacpp: Any) -> list[Any]:
    kinds = xllamacpp.ggml_backend_dev_type
    gpu = {kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU}
    return [device for device in xllamacpp.get_device_info() if device["type"] in gpu]


if __name__ == "__main__":
    main()
