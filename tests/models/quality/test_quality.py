"""Quality from published figures: exact rows as they are, the rest marked and sane."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from qplan.core.errors import InputError
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.quality import quality

# Not the Qwen-Chat models: all of their rows are published, noise included.
PLANNED = (
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "codellama-34b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "qwen3-8b",
    "smollm2-135m",
)
TASKS = ("chat", "code", "summarization", "general")
KV_FORMATS = ("", "-KV8-FP", "-KV8-INT", "-KV4-INT")


@pytest.mark.parametrize(
    ("model", "quantization", "task", "expected"),
    [
        ("llama-2-70b", "W8A8-FP", "chat", 68.5 / 69.1),
        ("llama-2-70b", "W4A16-AWQ", "chat", 68.4 / 69.1),
        ("qwen-7b-chat", "W4A16-GPTQ", "code", 29.9 / 37.2),
        ("llama-3.1-70b", "W4A16", "chat", 78.54 / 78.67),
    ],
)
def test_a_published_figure_is_returned_as_it_is(model: str, quantization: str, task: str, expected: float) -> None:
    found = quality(model, quantization, task)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.provenance == "published"
    assert not found.interpolated


def test_several_published_benchmarks_of_a_task_are_averaged() -> None:
    found = quality("qwen-72b-chat", "W8A16-GPTQ", "chat")
    assert found.value == pytest.approx((73.5 / 74.4 + 80.1 / 80.1 + 73.5 / 76.4) / 3)
    assert all(benchmark in found.source for benchmark in ("MMLU", "C-Eval", "GSM8K", "QwenLM/Qwen"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", ["BF16", "FP16"])
def test_16_bits_is_the_baseline(scheme: str, task: str) -> None:
    found = quality("anything-5b", scheme, task)
    assert (found.value, found.lower, found.upper, found.interpolated) == (1, 1, 1, False)


@pytest.mark.parametrize("model", [*PLANNED, "my-own-model"])
@pytest.mark.parametrize("task", TASKS)
def test_every_quantization_has_a_value_inside_its_interval(model: str, task: str) -> None:
    for scheme in Quantization.catalogue():
        for kv in KV_FORMATS:
            found = quality(model, scheme.scheme + kv, task)
            assert 0 <= found.lower <= found.value <= found.upper, (scheme, kv)
            assert found.source
            if found.interpolated:
                assert found.value <= 1, (scheme, kv)
                assert found.upper - found.lower > 0


@pytest.mark.parametrize("model", PLANNED)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "from_fine_to_coarse",
    [
        ("W8A16", "W4A16", "W3A16-GPTQ", "W2A16-GPTQ"),
        ("W8A16-GPTQ", "W4A16-GPTQ", "W3A16-GPTQ", "W2A16-GPTQ"),
        ("SpQR-4bit", "SpQR-3bit", "SpQR-2bit"),
        ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"),
    ],
)
def test_more_bits_are_never_worse(model: str, task: str, from_fine_to_coarse: tuple[str, ...]) -> None:
    values = [quality(model, scheme, task).value for scheme in from_fine_to_coarse]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("model", PLANNED)
@pytest.mark.parametrize("scheme", ["W8A8-FP", "W8A8-INT", "W4A16", "W4A16-AWQ", "W4A8"])
def test_a_quantized_cache_never_improves_on_a_16_bit_one(model: str, scheme: str) -> None:
    for kv in KV_FORMATS[1:]:
        assert quality(model, scheme + kv, "chat").value <= quality(model, scheme, "chat").value


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16-AWQ", "W4A16-GPTQ", "W4A8KV4", "Q4_K_M", "W3A16-GPTQ"])
def test_a_larger_model_loses_less(scheme: str) -> None:
    assert quality("llama-2-70b", scheme, "chat").value > quality("llama-2-7b", scheme, "chat").value


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-2-13b", "llama-2-70b", "codellama-34b"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", ["W8A8-FP", "W8A16", "W8A8KV8-FP"])
def test_the_studys_safe_methods_lose_about_nothing(model: str, task: str, scheme: str) -> None:
    assert quality(model, scheme, task).value > 0.985


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-2-13b", "llama-2-70b", "codellama-34b"])
def test_3_bits_lose_what_4_bits_keep(model: str) -> None:
    assert quality(model, "W4A16-GPTQ", "chat").value > 0.96
    assert quality(model, "W3A16-GPTQ", "chat").value < 0.95
    assert quality(model, "W2A16-GPTQ", "chat").value < 0.7


def test_code_suffers_most_and_is_less_certain() -> None:
    chat, code = (quality("llama-2-13b", "W4A16-GPTQ", task) for task in ("chat", "code"))
    assert code.value < chat.value
    assert code.upper - code.lower > chat.upper - chat.lower


def test_what_no_study_measured_says_so() -> None:
    found = quality("codellama-34b", "W4A16-AWQ", "code")
    assert found.interpolated
    assert found.provenance == "interpolated"
    assert "published figures of W4A16-AWQ on other models or tasks" in found.source
    assert quality("llama-2-7b", "LLM.int8()", "chat").provenance == "assumed"


def test_a_guess_is_less_certain_than_a_measurement() -> None:
    published = quality("llama-2-70b", "W4A16-AWQ", "chat")
    interpolated = quality("llama-2-13b", "W4A16-AWQ", "chat")
    assumed = quality("llama-2-13b", "SpQR-3bit", "chat")
    lows = [found.value - found.lower for found in (published, interpolated, assumed)]
    assert lows == sorted(lows)
    assert lows[0] < lows[1]


def test_spellings_are_the_catalogues() -> None:
    assert quality("llama-2-70b", "fp8", "chat") == quality("LLAMA-2-70B", "W8A8-FP", "chat")


def test_a_larger_model_quantized_can_beat_a_smaller_one() -> None:
    found = quality("llama-2-70b", "W4A16-AWQ", "chat", reference="llama-2-13b")
    assert found.value == pytest.approx(68.4 / 69.1 * 68.9 / 54.8)
    assert found.lower > 1
    assert found.provenance == "published"
    assert "68.9 against 54.8 of llama-2-13b" in found.source


def test_a_reference_of_ones_own_changes_nothing() -> None:
    assert quality("llama-2-7b", "W4A16", "code", "llama-2-7b") == quality("llama-2-7b", "W4A16", "code")


def test_summaries_are_compared_by_a_stand_in_that_is_named() -> None:
    found = quality("llama-2-7b", "FP16-KV8-INT", "summarization", reference="llama-2-13b")
    assert found.interpolated
    assert "MMLU at 16 bits for want of a summarization score" in found.source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-2-7b", "W4A61", "chat"), r"unknown quantization 'W4A61'.*did you mean 'W4A16'\?"),
        (("llama-2-7b", "W4A16", "cht"), r"'cht' is not one of chat, .*did you mean 'chat'\?"),
        (
            ("mistral-7b-v0.3", "W4A16", "code", "llama-2-7b"),
            "no 16-bit HumanEval score of 'mistral-7b-v0.3'",
        ),
        (("llama-2-7b", "W4A16", "chat", "lama-2-13b"), "did you mean 'llama-2-13b'"),
    ],
)
def test_bad_input_is_named_with_the_nearest_choice(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quality(*arguments)


def test_both_tables_name_known_models_and_quantizations() -> None:
    for row in _rows("baselines.csv"):
        assert Model.named(row["model"]).name == row["model"]
        assert 0 < float(row["score"]) < 100
        assert row["source"]
    for row in _rows("quality.csv"):
        assert str(Quantization.parse(row["quantization"])) == row["quantization"]
        assert row["task"] in ("chat", "code", "summarization", "any")
        assert (row["higher_is_better"] == "no") == (row["task"] == "any")
        assert row["source"]


def _rows(name: str) -> list[dict[str, str]]:
    text = files("qplan.profiles").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def test_a_published_gain_is_noise_and_shows_in_the_range_alone() -> None:
    found = quality("qwen-14b-chat", "W4A16-GPTQ", "code")  # HumanEval 45.7 against 43.9 at 16 bits
    assert found.provenance == "published"
    assert found.value == 1.0
    assert found.upper > 45.7 / 43.9
    assert found.lower < 1.0
