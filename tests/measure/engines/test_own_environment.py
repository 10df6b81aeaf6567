"""Engines in environments of their own: finding them, and what their GPUs cannot run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qplan.core.errors import MeasurementError
from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import Serving
from qplan.measure.engines.own_environment import (
    common_refusal,
    find_program,
    flag_list,
    installed_version,
    interpreter,
    known_gpus,
    own_flag_refusal,
)


def test_a_command_is_run_by_the_python_that_its_first_line_names(foreign_environment: Path, tmp_path: Path) -> None:
    python = foreign_environment / "bin" / "python"
    assert interpreter(foreign_environment / "bin" / "vllm") == python
    assert interpreter(python) == python
    wrapper = tmp_path / "vllm"  # what installers write where a path is too long for a first line
    wrapper.write_text("#!/bin/sh\n'''exec' python \"$0\" \"$@\"\n' '''\n")
    assert interpreter(wrapper) == tmp_path / "python"


def test_the_version_is_that_of_the_distribution_whatever_its_name(foreign_environment: Path) -> None:
    assert installed_version(foreign_environment / "bin" / "vllm", "vllm") == "0.32.0"
    assert installed_version(foreign_environment / "bin" / "python", "tensorrt_llm") == "1.2.1"


def test_an_environment_without_the_engine_is_named(foreign_environment: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="does not have the package nothing"):
        installed_version(foreign_environment / "bin" / "python", "nothing")
    script = tmp_path / "vllm"
    script.write_text("no script of Python's")
    with pytest.raises(MeasurementError, match=str(tmp_path / "python")):
        installed_version(script, "vllm")


def test_a_program_is_found_by_its_variable_then_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_X", sys.executable)
    assert find_program("X", "QPLAN_X", "x", "pip install x") == Path(sys.executable)
    monkeypatch.delenv("QPLAN_X")
    (tmp_path / "x").write_text("")
    (tmp_path / "x").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("X", "QPLAN_X", "x", "pip install x") == tmp_path / "x"
    (tmp_path / "x").unlink()
    with pytest.raises(MeasurementError, match=r"pip install x.*QPLAN_X"):
        find_program("X", "QPLAN_X", "x", "pip install x")


@pytest.mark.parametrize(
    ("quantization", "gpu", "reason"),
    [
        ("NVFP4", "h100", "FP4 tensor cores"),
        ("FP8", "a100", "FP8 tensor cores"),
        ("BF16-KV8-FP", "a100", "an FP8 KV cache"),
        ("W8A8KV8-FP", "h200", None),
        ("W8A8-INT", "a100", None),
    ],
)
def test_gpus_without_the_kernels_refuse(quantization: str, gpu: str, reason: str | None) -> None:
    serving = Serving("tiny", "weights", Quantization.parse(quantization), devices=(0,))
    refusal = common_refusal("trtllm", serving, [Gpu.named(gpu)])
    assert refusal is None if reason is None else reason in str(refusal)


def test_tensor_parallelism_and_devices_agree() -> None:
    serving = Serving("tiny", "weights", Quantization.parse("BF16"), tp=4, devices=(0, 1))
    assert common_refusal("vllm", serving, []) == "vllm: tensor parallelism 4 needs 4 devices, 2 are given"


def test_nothing_is_known_of_gpus_that_are_not_there() -> None:
    assert known_gpus(()) == []
    assert known_gpus((4096,)) == []


def test_a_setting_may_not_contradict_the_configuration_in_any_spelling() -> None:
    serving = Serving("tiny", "weights", Quantization.parse("BF16"), settings={"max_model_len": 64})
    refusal = own_flag_refusal("vllm", serving, {"max-model-len": "the context"})
    assert refusal == "vllm: the setting 'max_model_len' follows from the context and cannot be set beside it"
    assert own_flag_refusal("vllm", serving, {"model": "the weights"}) is None


def test_switches_are_given_or_left_out() -> None:
    flags: dict[str, str | int | float | bool] = {"eager": True, "chunked": False, "share": 0.5, "config": "a b"}
    assert flag_list(flags) == ["--eager", "--share", "0.5", "--config", "a b"]
