from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qplan.core import Workload
from qplan.core.errors import InputError
from qplan.models.calibration import OpenLoopPrior, calibrate, observed
from qplan.models.profiled import Profiled
from qplan.profiles.observations import from_rows

RUN: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "quantization": "BF16",
    "gpu": "H100-SXM5-80GB",
    "tp": 2,
    "engine": "vllm",
    "engine_version": "0.12.0",
    "phase": "serving",
    "workload": "isl=512,osl=128",
    "input_tokens": 512.0,
    "output_tokens": 128.0,
    "repeat": 0,
    "status": "ok",
    "ttft_mean_s": 0.05,
    "tpot_mean_s": 0.011,
    "provenance": "measured",
    "source": "made up",
}


def test_loops_are_told_apart_and_what_is_no_good_run_is_left_out() -> None:
    table = from_rows(
        [
            {**RUN, "concurrency": 8.0},
            {**RUN, "offered_qps": 2.0, "ttft_mean_s": None},
            {**RUN, "offered_qps": 4.0, "workload": "chat"},
            {**RUN, "offered_qps": 9.0, "status": "failed", "reason": "fell over"},
            {**RUN, "phase": "saturation", "slo": "ttft=1s", "arrivals": "poisson", "saturation_qps": 3.0},
        ],
        "made",
    )
    closed, opened = observed(table, "made")
    assert [(row.concurrency, row.input_tokens, row.output_tokens) for row in closed.rows] == [(8, 512, 128)]
    assert [row.rate_qps for row in opened.rows] == [2, 4]
    assert opened.rows[0].workload.mean_input_tokens == 512
    assert opened.rows[1].workload == Workload.named("chat")
    assert (opened.rows[0].deployment.engine, opened.rows[0].deployment.tp) == ("vllm", 2)
    assert np.isnan(opened.measured["ttft"]).tolist() == [True, False]
    assert opened.measured["tpot"].tolist() == [0.011, 0.011]


def test_measured_open_loops_calibrate_the_serving_model(profile: Profiled) -> None:
    prior = OpenLoopPrior(profile)
    rates = (1.0, 4.0, 8.0, 12.0)
    _, plain = observed(from_rows([{**RUN, "offered_qps": rate} for rate in rates], "made"), "made")
    slower = 1.25 * prior(plain.rows)["tpot"].total
    made = [{**RUN, "offered_qps": q, "tpot_mean_s": float(t)} for q, t in zip(rates, slower, strict=True)]
    _, seen = observed(from_rows(made, "made"), "made")
    calibrated = calibrate(prior, seen.rows[:3], {metric: values[:3] for metric, values in seen.measured.items()})
    assert calibrated(seen.rows[3:])["tpot"].total == pytest.approx(slower[3:], rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"input_tokens": None, "workload": None}, "has no input_tokens"), ({"model": "llama-9"}, "llama-9")],
)
def test_what_cannot_be_placed_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        observed(from_rows([{**RUN, "offered_qps": 1.0, **change}], "made"), "made")
