from typing import Any

import pytest

from qplan.measure.quality.dimensions import dimension_of, summarize

DEPLOYMENT = {
    "model": "m", "quantization": "Q4_0", "gpu": "cpu", "tp": 1, "engine": "llamacpp", "engine_version": "1",
    "status": "ok",
}  # fmt: skip


def row(**columns: Any) -> dict[str, Any]:
    return DEPLOYMENT | columns


def test_three_dimensions_of_one_deployment() -> None:
    rows = [
        row(phase="quality", task="choice:sample", metric="accuracy", score=0.6, baseline_score=0.8),
        row(phase="quality", task="math:sample", metric="exact_match", score=0.5, baseline_score=0.5),
        row(
            phase="quality", task="instructions:sample", metric="hard_satisfaction_rate", score=0.3, baseline_score=0.4
        ),
        row(phase="quality", task="perplexity:english", metric="perplexity", score=15.0, baseline_score=12.0),
        row(phase="quality", task="perplexity:english", metric="kl_divergence", score=0.25, baseline_score=0.0),
        row(
            phase="serving", offered_qps=1.0, tpot_p50_s=0.01, output_tokens_per_s=20.0, energy_j=100.0, duration_s=5.0
        ),
        row(
            phase="serving", offered_qps=4.0, tpot_p50_s=0.03, output_tokens_per_s=80.0, energy_j=200.0, duration_s=5.0
        ),
        row(phase="saturation", saturation_qps=3.0),
        row(phase="saturation", saturation_qps=5.0, bits_per_weight=5.3, memory_bytes=2e9),
        row(phase="saturation", status="failed", saturation_qps=99.0),
    ]
    (summary,) = summarize(rows)
    assert summary.deployment == ("m", "Q4_0", "cpu", 1, "llamacpp", "1")
    assert summary.knowledge == pytest.approx((0.75 + 1) / 2)
    assert summary.alignment == pytest.approx(0.75)
    assert (summary.perplexity, summary.kl_divergence) == (15.0, 0.25)
    efficiency = summary.efficiency
    assert (efficiency.tpot_s, efficiency.output_tokens_per_s, efficiency.saturation_qps) == (0.01, 80.0, 4.0)
    assert efficiency.joules_per_token == pytest.approx(0.5)
    assert (efficiency.bits_per_weight, efficiency.memory_bytes) == (5.3, 2e9)


def test_what_no_row_says_is_none() -> None:
    (summary,) = summarize([row(phase="serving", energy_j=None, energy_note="no counter")])
    assert summary.knowledge is None
    assert summary.alignment is None
    assert summary.efficiency.joules_per_token is None
    assert summary.efficiency.tpot_s is None


def test_deployments_stay_apart() -> None:
    rows = [
        row(phase="saturation", saturation_qps=3.0),
        row(phase="saturation", saturation_qps=5.0, quantization="F16"),
    ]
    assert {s.deployment[1]: s.efficiency.saturation_qps for s in summarize(rows)} == {"Q4_0": 3.0, "F16": 5.0}


def test_dimension_by_name() -> None:
    assert dimension_of("instructions:sample") == "alignment"
    assert dimension_of("choice:truthfulqa") == "alignment"
    assert dimension_of("lm-eval:ifeval") == "alignment"
    assert dimension_of("choice:mmlu") == "knowledge"
    assert dimension_of("humaneval") == "knowledge"
