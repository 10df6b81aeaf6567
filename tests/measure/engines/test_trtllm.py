"""The trtllm-serve adapter against the scripted engine that takes the real one's flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import EngineError, Serving
from qplan.measure.engines.trtllm import TrtLlm

FLAGS = Path(__file__).with_name("flags") / "trtllm-1.2.1.txt"


@pytest.fixture(autouse=True)
def trtllm_command(foreign_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_TRTLLM", str(foreign_environment / "bin" / "trtllm-serve"))


@pytest.fixture
def serving(tiny_checkpoint: Path) -> Serving:
    return Serving("tiny", str(tiny_checkpoint), Quantization.parse("BF16"), devices=(0,), context_tokens=512)


def script(monkeypatch: pytest.MonkeyPatch, **what: object) -> None:
    monkeypatch.setenv("SCRIPTED_ENGINE", json.dumps({"flags": str(FLAGS), **what}))


def modelopt(folder: Path, **quantization: object) -> str:
    """Write what ModelOpt says of a checkpoint, beside a configuration."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    said = {"producer": {"name": "modelopt"}, "quantization": {"exclude_modules": ["lm_head"], **quantization}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    return str(folder)


def test_the_real_engine_takes_every_flag(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"numActiveRequests": 2, "numQueuedRequests": 1, "kvCacheStats": {"usedNumBlocks": 3, "maxNumBlocks": 4}}
    script(monkeypatch, metrics=json.dumps([stats]), start_s=0.5)
    asked = replace(serving, tp=2, devices=(4, 5), settings={"max_num_tokens": 4096, "enable_chunked_prefill": True})
    engine = TrtLlm()
    with engine.start(asked, engine.prepare(asked, tmp_path), tmp_path / "run", deadline_s=30) as server:
        assert server.version == "1.2.1"
        assert (server.state().running, server.state().waiting, server.state().kv_usage) == (2, 1, 0.75)
        assert server.command[server.command.index("--tp_size") + 1] == "2"
        server.check()


def test_an_engine_that_answers_503_forever_ends_at_the_deadline(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, health=503)
    engine = TrtLlm()
    with pytest.raises(EngineError, match="503"):
        engine.start(serving, engine.prepare(serving, tmp_path), tmp_path / "run", deadline_s=1.5)


def test_the_cache_is_configured_in_the_file(serving: Serving, tmp_path: Path) -> None:
    settings = {"kv_cache_free_gpu_memory_fraction": 0.5, "max_num_tokens": 64}
    asked = replace(serving, quantization=Quantization.parse("FP16-KV8-FP"), settings=settings)
    launch = TrtLlm().launch(asked, TrtLlm().prepare(asked, tmp_path), tmp_path)
    file: dict[str, Any] = yaml.safe_load(Path(launch.argv[launch.argv.index("--config") + 1]).read_text())
    cache = {"dtype": "fp8", "enable_block_reuse": False, "free_gpu_memory_fraction": 0.5}
    assert file["kv_cache_config"] == cache
    assert file["dtype"] == "float16"
    assert "--kv_cache_free_gpu_memory_fraction" not in launch.argv
    assert launch.health == "/health_generate"


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "W8A8KV8-FP"),
        ({"quant_algo": "FP8"}, "W8A8-FP"),
        ({"quant_algo": "FP8"}, "W8A8KV8-FP"),
        ({"quant_algo": "FP8_BLOCK_SCALES"}, "FP8"),
        ({"quant_algo": "W4A16_AWQ"}, "AWQ"),
        ({"quant_algo": "W4A8_AWQ"}, "W4A8-FP"),
        ({"quant_algo": "NVFP4"}, "NVFP4"),
    ],
)
def test_a_checkpoint_is_served_as_what_it_says(
    serving: Serving, said: dict[str, str], asked: str, tmp_path: Path
) -> None:
    weights = modelopt(tmp_path / "checkpoint", **said)
    assert TrtLlm().refusal(replace(serving, weights=weights, quantization=Quantization.parse(asked))) is None


@pytest.mark.parametrize(
    ("said", "asked", "names"),
    [
        ({"quant_algo": "FP8"}, "BF16", ("FP8", "BF16")),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "FP8", ("FP8 with KV cache FP8", "W8A8-FP")),
        ({"quant_algo": "W4A16_GPTQ"}, "AWQ", ("W4A16_GPTQ", "W4A16-AWQ")),
        ({"quant_algo": "W4A8_AWQ"}, "AWQ", ("W4A8_AWQ", "W4A16-AWQ")),
        ({"quant_algo": "MIXED_PRECISION"}, "FP8", ("MIXED_PRECISION", "W8A8-FP")),
    ],
)
def test_a_mismatch_is_refused_by_both_names(
    serving: Serving, said: dict[str, str], asked: str, names: tuple[str, str], tmp_path: Path
) -> None:
    weights = modelopt(tmp_path / "checkpoint", **said)
    refusal = TrtLlm().refusal(replace(serving, weights=weights, quantization=Quantization.parse(asked)))
    assert refusal is not None
    assert all(name in refusal for name in names)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"devices": ()}, "needs GPUs"),
        ({"quantization": "SmoothQuant"}, "no W8A8-INT"),
        ({"quantization": "BF16-KV8-INT"}, "8-bit int KV cache"),
        ({"quantization": "FP8"}, "is not quantized"),
        ({"settings": {"tp_size": 4}}, "follows from the tensor parallelism"),
    ],
)
def test_what_it_cannot_serve_is_refused(serving: Serving, change: dict[str, object], reason: str) -> None:
    if "quantization" in change:
        change = {"quantization": Quantization.parse(str(change["quantization"]))}
    assert reason in str(TrtLlm().refusal(replace(serving, **change)))  # type: ignore[arg-type]


def test_integers_that_it_would_read_as_fp8_are_refused(serving: Serving, tmp_path: Path) -> None:
    group = {"weights": {"num_bits": 4, "type": "int"}, "input_activations": None}
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    asked = replace(serving, weights=str(tmp_path), quantization=Quantization.parse("W4A16"))
    assert "W4A16-INT (compressed-tensors)" in str(TrtLlm().refusal(asked))
