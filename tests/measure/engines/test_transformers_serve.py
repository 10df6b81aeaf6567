"""The adapter of Transformers' continuous batching: what it refuses and runs; on the real engine where it is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from qplan.core.quantization import Quantization
from qplan.measure.engines.conformance import EngineConformance
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.transformers_serve import TransformersServe

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}


def asked_for(quantization: str, weights: str = "random", **changes: object) -> Serving:
    given: dict[str, object] = {"context_tokens": 256, "max_sequences": 2, **changes}
    return Serving("llama-2-7b", weights, Quantization.parse(quantization), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (asked_for("Q4_K"), ["no kernels for Q4_K", "BF16"]),
        (asked_for("W4A16"), ["on a CPU", "W4A16"]),
        (asked_for("BF16-KV8-FP"), ["no quantized KV cache"]),
        (asked_for("BF16", tp=2), ["one GPU", "tp is 2"]),
        (asked_for("BF16", settings={"compile-levl": 1}), ["'compile-levl'", "did you mean 'compile-level'"]),
        (asked_for("BF16", "random:llama-9"), ["unknown model 'llama-9'"]),
        (asked_for("BF16", "no/where"), ["no folder 'no/where'"]),
    ],
)
def test_refusals_name_what_is_missing(asked: Serving, names: list[str]) -> None:
    refusal = TransformersServe().refusal(asked)
    assert refusal is not None
    assert all(name in refusal for name in names), refusal


@pytest.mark.parametrize("quantization", ["BF16", "W8A8-FP", "W8A8-INT", "W8A16", "W4A16"])
def test_a_gpu_serves_what_torchao_quantizes(quantization: str) -> None:
    assert TransformersServe().refusal(asked_for(quantization, devices=(0,))) is None


def test_the_command_says_everything_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_TRANSFORMERS", sys.executable)
    monkeypatch.setattr(TransformersServe, "version", lambda _: "5.17.0")
    asked = asked_for("W8A8-FP", devices=(3,), max_sequences=64, settings={"use-cuda-graph": True})
    launch = TransformersServe().launch(asked, Prepared("/weights", None, "", meaningful=False))
    assert launch.argv[3] == launch.model == "/weights"
    assert launch.argv[1] == "-P"
    flags = dict(zip(launch.argv[4::2], launch.argv[5::2], strict=True))
    assert flags["--quantization"] == "float8"
    assert flags["--device"] == "cuda:0"
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "3"
    assert flags["--max-sequences"] == "64"
    assert flags["--context"] == "256"
    assert flags["--use-cuda-graph"] == "on"
    assert not launch.meaningful


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "config.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.mark.skipif("QPLAN_TRANSFORMERS" not in os.environ, reason="QPLAN_TRANSFORMERS names no environment")
class TestTransformersServe(EngineConformance):
    name = "transformers"
    refused = asked_for("Q4_K")
    deadline_s = 300.0

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _serve_the_tiny_model(cls, tiny: Path) -> None:
        cls.serving = asked_for("W8A16", f"random:{tiny}")
