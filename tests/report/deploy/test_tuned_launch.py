"""Launch scripts of configurations that a study chose."""

from __future__ import annotations

import itertools
import shlex
import subprocess
from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.measure.campaign.points import Target
from qplan.report.deploy.tuned import launch_script, with_flag, without_flag


def argv(script: str) -> list[str]:
    return shlex.split(next(line for line in script.splitlines() if line.startswith("exec ")))[1:]


def test_vllm_is_started_with_the_measured_settings() -> None:
    settings = {"max-num-batched-tokens": 2048, "gpu-memory-utilization": 0.85, "enable-chunked-prefill": True}
    target = Target("llama-2-13b", "org/awq", "W4A16-AWQ-KV8-FP", "H100-SXM5-80GB", 2, "vllm", settings, 3000, 64)
    words = argv(launch_script(target, "study s, trial 3"))
    said = dict(itertools.pairwise(words))
    assert words[:3] == ["vllm", "serve", "org/awq"]
    assert said["--tensor-parallel-size"] == "2"
    assert said["--max-num-seqs"] == "64"
    assert said["--max-model-len"] == "3000"
    assert said["--max-num-batched-tokens"] == "2048"
    assert said["--gpu-memory-utilization"] == "0.85"
    assert said["--kv-cache-dtype"] == "fp8"
    assert words[-1] == "--enable-chunked-prefill"
    assert words.count("--max-num-batched-tokens") == 1


def test_what_a_study_did_not_vary_is_left_to_the_engine() -> None:
    target = Target("llama-2-13b", "org/model", "BF16", "H100-SXM5-80GB", 1, "sglang")
    assert "--chunked-prefill-size" not in argv(launch_script(target, "t"))


def test_the_script_runs_and_writes_the_options_it_names(tmp_path: Path) -> None:
    target = Target("llama-2-13b", "org/fp8", "W8A8KV8-FP", "H100-SXM5-80GB", 1, "trtllm", {"max_num_tokens": 4096})
    script = launch_script(target, "t").replace("/etc/qplan", str(tmp_path / "etc")).replace("trtllm-serve", "echo")
    (tmp_path / "serve.sh").write_text(script)
    said = subprocess.run(["sh", str(tmp_path / "serve.sh")], capture_output=True, text=True, check=True).stdout
    assert "--max_num_tokens 4096" in said
    assert '"fp8"' in (tmp_path / "etc" / "llama-2-13b.yaml").read_text()


def test_what_cannot_be_launched_is_said() -> None:
    with pytest.raises(InputError, match="no launch command"):
        launch_script(Target("llama-2-13b", "w", "BF16", "H100-SXM5-80GB", 1, "remote"), "t")
    with pytest.raises(InputError, match="unknown model"):
        launch_script(Target("my-model", "w", "BF16", "H100-SXM5-80GB", 1, "vllm"), "t")


def test_flags_are_replaced_not_repeated() -> None:
    command = ["serve", "--a", "1", "--on", "--b", "2"]
    assert without_flag(command, "on") == ["serve", "--a", "1", "--b", "2"]
    assert with_flag(command, "a", 3) == ["serve", "--on", "--b", "2", "--a", "3"]
    assert with_flag(command, "on", False) == ["serve", "--a", "1", "--b", "2"]
