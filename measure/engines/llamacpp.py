"""llama.cpp: GGUF weights and a quantized KV cache are real on any CPU, and on GPUs with a server built for them.

The package `xllamacpp` carries the server for CPUs; ``QPLAN_LLAMACPP`` names a ``llama-server`` that was built from
source, with CUDA for example, which is then started instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from qplan.core.errors import MeasurementError, nearest
from qplan.core.quantization import NumberFormat
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.gguf_random import make_random_gguf
from qplan.measure.engines.gguf_weights import TYPES, find_weights, gguf_type, make_weights
from qplan.measure.engines.llamacpp_server import FLAGS, SWITCH
from qplan.measure.engines.own_environment import visible
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process
from qplan.measure.engines.random_model import random_refusal, random_shape

_KV_TYPES = {NumberFormat(16, "float"): "f16", NumberFormat(8, "int"): "q8_0", NumberFormat(4, "int"): "q4_0"}
_OWN_FLAGS = ("alias", "host", "port", "ctx-size", "parallel", "cache-type-k", "cache-type-v", "gpu-layers")
_SERVER_FLAGS = ("--metrics", "--no-ui", "--fit", "off")  # as llamacpp_server sets them
_ALL_LAYERS = 999
_VERSION_LIMIT_S = 60.0
_HTTP_THREADS = 512  # each open stream holds one: with fewer, the queue would stand outside the engine and /health too


class LlamaCpp:
    """Adapter of llama.cpp's server.

    What is set unless :attr:`~qplan.measure.engines.contract.Serving.settings` says otherwise: one thread less than
    there are cores, so that the load client has one (threads of llama.cpp that wait for a core spin); no reuse of
    prompts between requests, so that every prompt is computed.
    """

    name = "llamacpp"

    def version(self) -> str:
        """Return the version of xllamacpp, which carries the llama.cpp build of its last part, or of `llama-server`."""
        program = _program()
        if program is not None:
            return _build(program)
        try:
            return metadata.version("xllamacpp")
        except metadata.PackageNotFoundError:
            raise MeasurementError("llama.cpp is not installed; pip install 'qplan[llamacpp]'") from None

    def refusal(self, serving: Serving) -> str | None:
        """Say why llama.cpp cannot serve this, or return ``None``."""
        quantization = serving.quantization
        if gguf_type(quantization) is None:
            near = nearest(quantization.scheme, TYPES)
            return f"llamacpp serves GGUF types, {', '.join(TYPES)}; {quantization.scheme} is none of them{near}"
        if quantization.kv not in _KV_TYPES:
            kv = f"{quantization.kv.bits}-bit {quantization.kv.kind}"
            return f"llamacpp has no {kv} KV cache; it has KV8-INT and KV4-INT"
        if serving.tp != 1:
            return f"llamacpp has no tensor parallelism; tp is {serving.tp}"
        for flag in serving.settings:
            if flag in _OWN_FLAGS:
                return f"llamacpp: '{flag}' follows from the configuration and cannot be set"
            if flag not in FLAGS:
                return f"llamacpp has no setting '{flag}'{nearest(flag, FLAGS)}"
        if quantization.kv.bits < 16 and _text(serving.settings.get("flash-attn", "on")) == "off":
            return "llamacpp quantizes the V cache only with flash attention; take 'flash-attn' out of the settings"
        return random_refusal(serving)

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        """Make the GGUF type of `serving` out of its weights, below `cache`, or of random ones."""
        type_name = gguf_type(serving.quantization)
        assert type_name is not None
        shape = random_shape(serving)
        if shape is not None:
            return make_random_gguf(shape, type_name, cache / "gguf")
        return make_weights(find_weights(serving.weights), type_name, cache / "gguf")

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        """Start the server and wait until it really serves."""
        return start_process(self.launch(serving, prepared), folder=folder, deadline_s=deadline_s)

    def launch(self, serving: Serving, prepared: Prepared) -> Launch:
        """Return the command for `serving`."""
        kv_type = _KV_TYPES[serving.quantization.kv]
        flags: dict[str, str | int | float | bool] = {
            "alias": serving.model,
            "host": "127.0.0.1",
            "port": PORT,
            "ctx-size": serving.context_tokens * serving.max_sequences,
            "parallel": serving.max_sequences,
            "cache-type-k": kv_type,
            "cache-type-v": kv_type,
            "flash-attn": "auto" if kv_type == "f16" else "on",
            "gpu-layers": _ALL_LAYERS if serving.devices else 0,
            "threads": max(1, _cores() - 1),
            "threads-http": _HTTP_THREADS,
            "cache-prompt": "off",
            "cache-ram": 0,
            **serving.settings,
        }
        program = _program()
        if program is None:
            argv = [sys.executable, "-P", "-m", "qplan.measure.engines.llamacpp_server", "--model", prepared.weights]
            argv += [part for flag, value in flags.items() for part in (f"--{flag}", _text(value))]
        else:
            argv = [str(program), "--model", prepared.weights, *_SERVER_FLAGS, *_native(flags)]
        return Launch(
            tuple(argv), serving.model, self.version(), visible(serving.devices), meaningful=prepared.meaningful
        )


def _program() -> Path | None:
    """Return the `llama-server` that ``QPLAN_LLAMACPP`` names; ``None`` where it names none.

    Raises
    ------
    MeasurementError
        It names something that is no program.
    """
    named = os.environ.get("QPLAN_LLAMACPP")
    if not named:
        return None
    found = shutil.which(named)
    if found is None:
        raise MeasurementError(f"QPLAN_LLAMACPP: '{named}' is no program; expected the path of a llama-server")
    return Path(found).absolute()


@cache
def _build(program: Path) -> str:
    """Return the build number of a `llama-server`: it says ``version: 11549 (4e2a)``, or ``(build 11549, ...)``."""
    try:
        said = subprocess.run(  # noqa: S603 - a list of arguments, never a shell string
            [program, "--version"], capture_output=True, text=True, timeout=_VERSION_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MeasurementError(f"QPLAN_LLAMACPP: {program} does not say its version: {error}") from None
    number = re.search(r"(?:build|version:) (\d+)\b(?!\.)", said.stdout + said.stderr)
    if number is None:
        raise MeasurementError(f"QPLAN_LLAMACPP: {program} does not say its version; expected a llama-server")
    return f"b{number[1]}"


def _native(flags: Mapping[str, str | int | float | bool]) -> list[str]:
    """Return flags as llama.cpp's own server takes them: some switches are a flag, or the flag with ``no-``."""
    arguments = ["--device", "CUDA0"] if flags["gpu-layers"] == _ALL_LAYERS else []  # else it would go on without
    for flag, value in flags.items():
        switch = FLAGS[flag][0] == SWITCH
        arguments += [f"--{'' if _text(value) == 'on' else 'no-'}{flag}"] if switch else [f"--{flag}", _text(value)]
    return arguments


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(value: str | int | float | bool) -> str:
    """Return a setting as the server's flag takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
