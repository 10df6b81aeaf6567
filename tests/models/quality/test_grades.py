"""Quality models: exact figures first, the surrogate else, consistent with what is known, and saved as data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.core.quantization import Quantization
from qplan.models.quality import Evidence, Quality, QualityModel, published, quality

ROW = {
    "phase": "quality",
    "status": "ok",
    "model": "llama-2-70b",
    "quantization": "W4A16-AWQ",
    "task": "mmlu",
    "metric": "accuracy",
    "score": 0.66,
    "baseline_score": 0.69,
    "items": 2000,
    "source": "own run",
}


@pytest.fixture(scope="module")
def shipped() -> QualityModel:
    return QualityModel(published())


def alike(one: Quality, other: Quality) -> None:
    """Two fits to the same figures: linear algebra sums in an order of its own, so the last digits may differ."""
    assert one == replace(other, value=one.value, lower=one.lower, upper=one.upper)
    assert (one.value, one.lower, one.upper) == pytest.approx((other.value, other.lower, other.upper), rel=1e-9)


def test_a_measurement_of_ones_own_goes_before_a_published_figure() -> None:
    found = QualityModel.of_rows([ROW]).quality("llama-2-70b", "W4A16-AWQ", "chat")
    assert found.value == pytest.approx(0.66 / 0.69)
    assert found.provenance == "measured"
    assert not found.interpolated
    assert "own run" in found.source


def test_a_measurement_moves_what_was_not_measured(shipped: QualityModel) -> None:
    measured = QualityModel.of_rows([ROW | {"score": 0.55}])
    before = shipped.quality("llama-2-70b", "W4A16-GPTQ", "chat")
    after = measured.quality("llama-2-70b", "W4A16-GPTQ", "chat")
    assert after.interpolated
    assert after.value < before.value


def test_a_measured_divergence_narrows_the_interval(shipped: QualityModel) -> None:
    text = ROW | {"model": "mine-7b", "task": "perplexity:english", "metric": "kl_divergence"}
    text |= {"score": 0.02, "baseline_score": 0.0, "items": 50_000}
    before = shipped.quality("mine-7b", "W4A16-AWQ", "chat")
    after = QualityModel.of_rows([text]).quality("mine-7b", "W4A16-AWQ", "chat")
    assert "its own perplexity:english kl_divergence (0.02 nats)" in after.source
    assert after.upper - after.lower < before.upper - before.lower


def test_a_prediction_states_coverage_and_a_judgement_none(shipped: QualityModel) -> None:
    assert shipped.quality("llama-2-7b", "W4A16-AWQ", "chat").coverage == 0.9
    assert shipped.quality("llama-2-70b", "W4A16-AWQ", "chat").coverage is None


def test_no_prediction_gains_but_its_range_may(shipped: QualityModel) -> None:
    found = shipped.quality("llama-2-70b", "W8A16", "code")
    assert found.value <= 1 < found.upper


def test_extrapolation_is_warned_of_in_words(shipped: QualityModel) -> None:
    cases = {
        ("llama-2-7b", "SpQR-2bit"): "no figure of SpQR-2bit's method (spqr)",
        ("my-own-model", "W4A16"): "the size of my-own-model is unknown: taken for one of 7B parameters",
        ("giant-900b", "W2A16-GPTQ"): "giant-900b has 900B parameters; figures at these bits are of",
    }
    for (model, scheme), words in cases.items():
        found = shipped.quality(model, scheme, "chat")
        assert found.provenance == "assumed"
        assert words in " ".join(found.warnings)
    assert shipped.quality("llama-2-7b", "W4A16-AWQ", "chat").warnings == ()


def test_what_figures_end_at_is_named() -> None:
    few = [one for one in published() if one.quantization.bits_per_weight > 4 and one.quantization.kv.bits == 16]
    model = QualityModel(few)
    assert "W2A16-GPTQ stores 2.14 bits a weight; figures of its method end at 4.16" in " ".join(
        model.quality("llama-2-7b", "W2A16-GPTQ", "chat").warnings
    )
    assert "no figure of a 4-bit int KV cache" in model.quality("llama-2-7b", "W4A8KV4", "chat").warnings


def test_a_known_coarser_scheme_lifts_a_finer_one() -> None:
    generous = [ROW | {"model": "mine-7b", "quantization": "W3A16-GPTQ", "score": 0.688}]
    found = QualityModel.of_rows(generous).quality("mine-7b", "W4A16-GPTQ", "chat")
    assert found.value >= 0.688 / 0.69
    assert found.lower <= found.value <= found.upper


def test_a_known_finer_scheme_of_the_method_caps_a_coarser_one() -> None:
    poor = [ROW | {"model": "mine-7b", "quantization": "W4A16-GPTQ", "score": 0.5}]
    found = QualityModel.of_rows(poor).quality("mine-7b", "W3A16-GPTQ", "chat")
    assert found.value <= 0.5 / 0.69


def test_perplexity_is_a_proxy_with_its_error(shipped: QualityModel) -> None:
    little, much = (shipped.proxy(nats, "chat", "llama-2-13b") for nats in (0.02, 0.2))
    assert 1 > little.value > much.value > 0.5
    assert much.upper - much.lower > little.upper - little.lower
    assert shipped.proxy(0.1, "chat", "llama-2-70b").value > shipped.proxy(0.1, "chat", "llama-2-7b").value


@pytest.mark.parametrize(("nats", "task"), [(0.0, "chat"), (-1.0, "chat"), (math.nan, "chat"), (0.1, "luck")])
def test_a_proxy_of_nothing_is_refused(shipped: QualityModel, nats: float, task: str) -> None:
    with pytest.raises(InputError, match="expected a number above 0 and a task"):
        shipped.proxy(nats, task, "llama-2-7b")


def test_a_saved_model_answers_the_same(shipped: QualityModel) -> None:
    again = QualityModel.from_data(json.loads(json.dumps(shipped.to_data())))
    for asked in (("llama-2-7b", "W4A16-AWQ", "chat"), ("qwen-7b-chat", "W4A16-GPTQ", "code"), ("x", "Q2_K", "code")):
        alike(again.quality(*asked), shipped.quality(*asked))


def foreign() -> list[Any]:
    return [None, [], {}, {"format": "qplan quality model", "version": 2}, {"format": "other", "version": 1}]


@pytest.mark.parametrize("data", foreign())
def test_a_foreign_model_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="not a quality model of version 1"):
        QualityModel.from_data(data)


def test_a_model_without_figures_is_refused_but_an_empty_one_answers() -> None:
    head = {"format": "qplan quality model", "version": 1}
    with pytest.raises(InputError, match="'evidence' is not a list"):
        QualityModel.from_data(head | {"evidence": "none"})
    found = QualityModel.from_data(head | {"evidence": []}).quality("llama-2-7b", "W4A16", "chat")
    assert found.provenance == "assumed"
    assert 0.5 < found.lower < found.value < 1


def test_the_published_answers_are_the_function_s(shipped: QualityModel) -> None:
    alike(quality("llama-2-13b", "W4A8KV4", "chat"), shipped.quality("llama-2-13b", "W4A8KV4", "chat"))


def test_both_16_bit_formats_are_one() -> None:
    only = Evidence("m-7b", Quantization.parse("FP16-KV8-INT"), "knowledge", "MMLU", 0.97, 0.01, "measured", "run")
    assert QualityModel([only]).quality("m-7b", "BF16-KV8-INT", "chat").value == 0.97
