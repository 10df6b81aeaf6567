"""Figures: what tables and observations say, and with what error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.models.quality import Evidence, measured, published
from qplan.models.quality.evidence import DIVERGENCE, TASK_OF, family_of, kind_of, sampling_error, size_of

ROW = {
    "phase": "quality",
    "status": "ok",
    "model": "SmolLM2-135M",
    "quantization": "Q4_0",
    "task": "choice:history",
    "metric": "accuracy",
    "score": 0.45,
    "baseline_score": 0.5,
    "items": 400,
    "source": "a run",
}


def row(**changed: Any) -> dict[str, Any]:
    return ROW | changed


def text(metric: str, score: float, baseline: float | None, **changed: Any) -> dict[str, Any]:
    return row(task="perplexity:english", metric=metric, score=score, baseline_score=baseline, **changed)


def test_every_published_figure_has_a_kind_and_an_error() -> None:
    for one in published():
        assert one.kind in (*TASK_OF, DIVERGENCE)
        assert one.error > 0
        assert 0 < one.value < (3 if one.kind == DIVERGENCE else 1.2)
        assert not one.quantization.is_16_bit


def test_a_perplexity_becomes_nats_per_token() -> None:
    (found,) = [one for one in published() if one.model == "llama-2-13b" and str(one.quantization) == "W3A16-GPTQ"]
    assert found.kind == DIVERGENCE
    assert found.value == pytest.approx(math.log(5.41 / 4.88))
    assert found.error < 0.1 * found.value


def test_a_measured_share_is_a_retention_with_its_paired_error() -> None:
    (found,) = measured([row(score_change_low=-0.08, score_change_high=-0.02)])
    assert (found.model, found.kind, found.provenance) == ("smollm2-135m", "knowledge", "measured")
    assert found.value == pytest.approx(0.9)
    assert found.error == pytest.approx(0.06 / 3.92 / 0.5)


def test_without_a_paired_interval_the_error_is_that_of_sampling() -> None:
    few, many = (measured([row(items=items)])[0].error for items in (100, 10_000))
    assert few > 5 * many


@pytest.mark.parametrize(
    "ignored",
    [
        row(phase="serving"),
        row(status="failed"),
        row(score=None),
        row(quantization="BF16"),
        row(baseline_score=None),
        row(metric="seconds"),
        text("perplexity", 15.0, None),
    ],
)
def test_rows_that_say_nothing_of_quantization_are_left_out(ignored: dict[str, Any]) -> None:
    assert measured([ignored]) == ()


def test_of_one_text_the_divergence_stands_before_perplexity_and_agreement() -> None:
    rows = [text("top1_agreement", 0.74, 1.0), text("perplexity", 15.46, 12.34), text("kl_divergence", 0.252, 0.0)]
    (found,) = measured(rows)
    assert found.value == 0.252
    (second,) = measured(rows[:2])
    assert second.value == pytest.approx(math.log(15.46 / 12.34))
    (last,) = measured(rows[:1])
    assert last.value == pytest.approx(0.252, rel=0.1)


def test_repeats_and_other_texts_all_count() -> None:
    rows = [text("kl_divergence", 0.2, 0.0), text("kl_divergence", 0.22, 0.0)]
    rows.append(rows[0] | {"task": "perplexity:code"})
    assert len(measured(rows)) == 3


@pytest.mark.parametrize(
    ("called", "kind"),
    [
        ("MMLU", "knowledge"),
        ("gsm8k exact_match", "maths"),
        ("humaneval pass@1", "code"),
        ("IFEval strict prompt", "instructions"),
        ("summaries:news rouge_l", "reading"),
        ("WinoGrande", "commonsense"),
    ],
)
def test_a_benchmarks_name_tells_its_kind(called: str, kind: str) -> None:
    assert kind_of(called) == kind


def test_generated_answers_are_noisier_than_choices() -> None:
    assert sampling_error("code", 0.6, 164) > sampling_error("knowledge", 0.6, 164)
    assert sampling_error("knowledge", 0.6, 164) > 2 * sampling_error("knowledge", 0.6, 14042)


def test_sizes_come_from_the_catalogue_or_the_name() -> None:
    assert size_of("llama-2-7b") == pytest.approx(6.74, rel=0.01)
    assert size_of("qwen2-0.5b") == 0.5
    assert size_of("smollm2-135m") == pytest.approx(0.135, rel=0.05)
    assert size_of("my-own-model") is None


def test_a_family_is_the_name_up_to_its_size() -> None:
    names = ("llama-2-70b", "llama-3.1-8b", "llama-3-8b", "qwen-7b-chat", "mistral-7b")
    assert [family_of(name) for name in names] == ["llama-2", "llama-3", "llama-3", "qwen", "mistral"]


def test_figures_survive_their_data() -> None:
    for one in published()[::20]:
        assert Evidence.from_data(one.to_data()) == one


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"value": float("nan")}, "wrong value"),
        ({"value": True}, "wrong value"),
        ({"model": 7}, "wrong model"),
        ({"kind": "luck"}, "wrong kind"),
        ({"error": -1.0}, "wrong kind or error"),
        ({"quantization": "W4A61"}, "did you mean 'W4A16'"),
    ],
)
def test_a_tampered_figure_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Evidence.from_data(published()[0].to_data() | changed)


@pytest.mark.parametrize("foreign", [None, [], {"model": "x"}, "text"])
def test_a_foreign_figure_is_refused(foreign: object) -> None:
    with pytest.raises(InputError, match="a figure has the fields model, quantization"):
        Evidence.from_data(foreign)
