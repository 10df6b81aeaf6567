"""The launch file of a configuration that a study chose: the engine's command with its measured settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.report.deploy.commands import EVERY_INTERFACE, PORT, command

if TYPE_CHECKING:
    from qplan.measure.campaign.points import Target

_SEQUENCES = {"trtllm": "max_batch_size", "vllm": "max-num-seqs", "sglang": "max-running-requests"}
_CONTEXT = {"trtllm": "max_seq_len", "vllm": "max-model-len", "sglang": "context-length"}
# What a plan states of the tokens of an iteration; a study measures the engine's own limit unless it varies it.
_TOKENS = {"trtllm": "max_num_tokens", "vllm": "max-num-batched-tokens", "sglang": "chunked-prefill-size"}

Written = tuple[list[str], Mapping[str, str], tuple[str, ...]]
"""Arguments, text of the files that they name, and what has to be done before."""


def launch_script(target: Target, title: str) -> str:
    """Return a shell script that serves a configuration as it was measured.

    Parameters
    ----------
    title
        What the script says of itself.

    Raises
    ------
    InputError
        No launch command is known for the engine, or the model is not in the catalogue.
    """
    argv, files, notes = _llamacpp(target) if target.engine == "llamacpp" else _of_plan(target)
    lines = ["#!/bin/sh", f"# {title}", *(f"# {note}" for note in notes), "set -e"]
    for path, text in files.items():
        lines += [f"mkdir -p {shlex.quote(str(Path(path).parent))}", f"cat >{shlex.quote(path)} <<'END'", text, "END"]
    return "\n".join([*lines, f"exec {shlex.join(argv)}", ""])


def _of_plan(target: Target) -> Written:
    """Take the command that a plan would give, with this configuration's own limits and settings."""
    from qplan.core.gpu import Gpu

    model = Model.named(target.model, "the study's model")
    quantization = Quantization.parse(target.quantization)
    deployment = Deployment(model, quantization, Gpu.named(target.gpu), target.tp, target.engine)
    given = {f"{model}:{quantization.scheme}": target.weights} if target.weights else {}
    written = command(deployment, given)
    flags = {_CONTEXT[target.engine]: target.context_tokens, _SEQUENCES[target.engine]: target.max_sequences}
    argv = without_flag(written.argv, _TOKENS[target.engine])
    for flag, value in {**flags, **target.settings}.items():
        argv = with_flag(argv, flag, value)
    return argv, written.files, written.notes


def _llamacpp(target: Target) -> Written:
    """Return the command of llama.cpp's server, its weights made where they are not there yet."""
    from qplan.measure.campaign.runner import cache_folder
    from qplan.measure.engines.llamacpp import LlamaCpp
    from qplan.measure.engines.process import PORT as OPEN_PORT

    if not target.weights:
        raise InputError(f"{target.model}: the study names no weights to serve; add them to its 'models'")
    engine, serving = LlamaCpp(), target.serving()
    launch = engine.launch(serving, engine.prepare(serving, cache_folder() / "weights"))
    argv = with_flag(launch.argv, "host", EVERY_INTERFACE)
    return [str(PORT) if word == OPEN_PORT else word for word in argv], {}, ()


def with_flag(argv: Sequence[str], flag: str, value: str | int | float | bool) -> list[str]:
    """Return a command with this flag instead of any other value of it; ``True`` is a flag without a value."""
    rest = without_flag(argv, flag)
    if value is False:
        return rest
    return [*rest, f"--{flag}"] if value is True else [*rest, f"--{flag}", str(value)]


def without_flag(argv: Sequence[str], flag: str) -> list[str]:
    """Return a command without a flag that has a value."""
    words = list(argv)
    if f"--{flag}" in words:
        at = words.index(f"--{flag}")
        has_value = at + 1 < len(words) and not words[at + 1].startswith("--")
        del words[at : at + 1 + has_value]
    return words
