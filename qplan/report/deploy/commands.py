"""The command and the container image that serve a deployment as it was planned.

The limits that the plan's numbers stand on are said on the command line: sequences and tokens of an iteration, and the
longest request, which is cut to what the KV cache holds. Prefix caching is left as the engine has it: it only helps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qplan.core.deployment import MAX_BATCHED_TOKENS, MAX_SEQUENCES, Deployment
from qplan.core.errors import InputError
from qplan.measure.engines import sglang, trtllm, vllm
from qplan.measure.engines.own_environment import flag_list

PORT = 8000
EVERY_INTERFACE = "0.0.0.0"  # noqa: S104  within its container or pod
_WEIGHTS_FOLDER = "/models"
_TRTLLM_DEFAULTS = {"dtype": "auto", "kv_cache_config": {"dtype": "auto"}}

Flags = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Command:
    """How a replica is launched.

    Attributes
    ----------
    argv
        Program and arguments; it listens on :data:`PORT`.
    image
        Container image that has the program.
    files
        Text of files that the command reads, by absolute path.
    weights
        Folder or Hugging Face id of the weights.
    notes
        What has to be done before it can run.
    """

    argv: tuple[str, ...]
    image: str
    files: Mapping[str, str]
    weights: str
    notes: tuple[str, ...]


def command(deployment: Deployment, weights: Mapping[str, str]) -> Command:
    """Return the command for one replica.

    Parameters
    ----------
    weights
        Where checkpoints are, by ``MODEL:QUANTIZATION`` (the quantization without its KV cache).

    Raises
    ------
    InputError
        For an engine whose command is not known, or a KV cache that the engine does not have.
    """
    write = _WRITERS.get(deployment.engine)
    if write is None:
        raise InputError(
            f"{deployment}: no launch command is known for '{deployment.engine}'; known are {', '.join(_WRITERS)}"
        )
    try:
        return write(deployment, *_weights(deployment, weights))
    except KeyError:
        raise InputError(f"{deployment}: {deployment.engine} has no such KV cache") from None


def _weights(deployment: Deployment, given: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return where the checkpoint is, and what the user has to see to."""
    scheme = deployment.quantization.scheme
    key = f"{deployment.model}:{scheme}"
    if key in given:
        return given[key], ()
    folder = f"{_WEIGHTS_FOLDER}/{deployment.model}-{scheme}"
    return folder, (f"put a {scheme} checkpoint of {deployment.model} into {folder}, or say --weights {key}=WHERE",)


def _longest(deployment: Deployment) -> int:
    return min(deployment.model.max_context, deployment.memory().kv_tokens)


def _trtllm(one: Deployment, weights: str, notes: tuple[str, ...]) -> Command:
    options = f"/etc/qplan/{one.model}.yaml"
    pytorch = one.quantization.scheme in trtllm.KERNELS
    if not pytorch:
        notes = (
            *notes,
            f"the PyTorch backend of TensorRT-LLM has no {one.quantization.scheme}: build an engine with trtllm-build, "
            f"and put it and its tokenizer into {weights}",
        )
    flags: Flags = {
        "host": EVERY_INTERFACE,
        "port": PORT,
        "backend": "pytorch" if pytorch else "tensorrt",
        "tp_size": one.tp,
        "max_batch_size": MAX_SEQUENCES,
        "max_num_tokens": MAX_BATCHED_TOKENS,
        "max_seq_len": _longest(one),
    }
    said = trtllm.format_options(one.quantization)
    files = {}
    if said != _TRTLLM_DEFAULTS:
        flags["extra_llm_api_options"] = options
        files[options] = json.dumps(said, indent=1)  # every JSON text is YAML
    image = f"nvcr.io/nvidia/tensorrt-llm/release:{one.engine_version or 'latest'}"
    return Command(("trtllm-serve", weights, *flag_list(flags)), image, files, weights, notes)


def _vllm(one: Deployment, weights: str, notes: tuple[str, ...]) -> Command:
    flags: Flags = {
        "host": EVERY_INTERFACE,
        "port": PORT,
        "served-model-name": one.model.name,
        **vllm.format_flags(one.quantization),
        "tensor-parallel-size": one.tp,
        "max-num-seqs": MAX_SEQUENCES,
        "max-num-batched-tokens": MAX_BATCHED_TOKENS,
        "max-model-len": _longest(one),
    }
    image = f"vllm/vllm-openai:{f'v{one.engine_version}' if one.engine_version else 'latest'}"
    return Command(("vllm", "serve", weights, *flag_list(flags)), image, {}, weights, notes)


def _sglang(one: Deployment, weights: str, notes: tuple[str, ...]) -> Command:
    flags: Flags = {
        "model-path": weights,
        "served-model-name": one.model.name,
        "host": EVERY_INTERFACE,
        "port": PORT,
        **sglang.format_flags(one.quantization),
        "tp-size": one.tp,
        "max-running-requests": MAX_SEQUENCES,
        "chunked-prefill-size": MAX_BATCHED_TOKENS,
        "context-length": _longest(one),
    }
    image = f"lmsysorg/sglang:{f'v{one.engine_version}' if one.engine_version else 'latest'}"
    return Command(("python3", "-m", "sglang.launch_server", *flag_list(flags)), image, {}, weights, notes)


_WRITERS: Mapping[str, Callable[[Deployment, str, tuple[str, ...]], Command]] = {
    "trtllm": _trtllm,
    "vllm": _vllm,
    "sglang": _sglang,
}
