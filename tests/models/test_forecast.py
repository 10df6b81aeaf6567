from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from qplan.core import Gpu, Model, Quantization, Workload
from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.models.fitted import Fitted, load_fitted
from qplan.models.forecast import Forecast, forecast

CHAT = Workload.fixed("isl=512,osl=128")


def deployment(quantization: str = "W4A16", model: str = "llama-2-13b", gpu: str = "h100", tp: int = 1) -> Deployment:
    engine = load_fitted(None).engines(Gpu.named(gpu))[0]
    return Deployment(Model.named(model), Quantization.parse(quantization), Gpu.named(gpu), tp, *engine)


def values(found: Forecast) -> dict[str, float]:
    return {one.name: one.prediction.value for one in found.quantities if one.prediction is not None}


def width(found: Forecast, name: str) -> float:
    (one,) = (one for one in found.quantities if one.name == name)
    assert one.prediction is not None
    return one.prediction.upper / one.prediction.lower


@pytest.mark.slow
def test_latency_and_power_rise_with_load_and_energy_a_token_falls() -> None:
    curves = [values(forecast(load_fitted(None), deployment(), CHAT, qps)) for qps in (1.0, 4.0, 8.0)]
    for name in ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "power_w"):
        assert curves[0][name] < curves[1][name] < curves[2][name]
    assert curves[0]["j_per_token"] > curves[1]["j_per_token"] > curves[2]["j_per_token"]
    assert curves[1]["output_tokens_per_s"] == pytest.approx(4 * 128)


def test_every_number_has_an_interval_around_it_and_says_what_it_stands_on() -> None:
    for one in forecast(load_fitted(None), deployment(), CHAT, 2.0).quantities:
        assert one.prediction is not None
        assert one.prediction.lower <= one.prediction.value <= one.prediction.upper
        assert one.provenance


def test_beyond_saturation_is_an_answer_with_its_reason() -> None:
    found = forecast(load_fitted(None), deployment(), CHAT, 1000.0)
    unknown = {one.name: one.reason for one in found.quantities if one.prediction is None}
    assert {"ttft_p50", "tpot_p90", "output_tokens_per_s", "power_w", "j_per_token"} <= set(unknown)
    assert all(reason is not None and "beyond saturation" in reason for reason in unknown.values())
    assert "quality" in values(found)
    assert any("without end" in warning for warning in found.warnings)
    data = found.to_json()
    assert data["quantities"]["ttft_p50"]["value"] is None


def test_what_was_not_profiled_is_predicted_with_more_doubt_and_says_so() -> None:
    profiled = forecast(load_fitted(None), deployment(), CHAT, 1.0)
    other = replace(Model.named("llama-2-13b"), name="llama-2-15b", layers=46)
    unseen = forecast(load_fitted(None), replace(deployment(), model=other), CHAT, 1.0)
    assert not any("predicted from its" in warning for warning in profiled.warnings)
    assert any("predicted from its GPU, engine and quantization" in warning for warning in unseen.warnings)
    assert width(unseen, "tpot_p50") > width(profiled, "tpot_p50")
    assert values(unseen)["tpot_p50"] > values(profiled)["tpot_p50"]
    assert all(one.extrapolates for one in unseen.quantities if one.name.startswith("t"))


def test_an_error_that_nobody_measured_leaves_the_interval_open() -> None:
    blind = replace(load_fitted(None), latency_error={})
    found = forecast(blind, deployment(), CHAT, 1.0)
    (ttft,) = (one for one in found.quantities if one.name == "ttft_p50")
    assert ttft.prediction is not None
    assert ttft.prediction.upper == math.inf
    assert ttft.prediction.coverage is None
    assert ttft.to_json()["upper"] is None
    assert any("not known" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("asked", "workload", "says"),
    [
        (deployment("BF16", "llama-2-70b"), CHAT, "GiB"),
        (deployment("W8A8-FP", gpu="a100"), CHAT, "A100"),
        (deployment(), Workload.fixed("isl=8000,osl=128"), "8128"),
    ],
)
def test_what_cannot_run_is_refused(asked: Deployment, workload: Workload, says: str) -> None:
    with pytest.raises(InputError, match=says):
        forecast(load_fitted(None), asked, workload, 1.0)


def test_a_model_comes_back_as_it_was() -> None:
    again = Fitted.from_data(load_fitted(None).to_data())
    assert forecast(again, deployment(), CHAT, 3.0) == forecast(load_fitted(None), deployment(), CHAT, 3.0)


@pytest.mark.parametrize("broken", [None, {}, {"source": "x"}, "steps", "step_error", "quality"])
def test_what_is_not_a_fitted_model_is_refused(broken: Any) -> None:
    data = {**load_fitted(None).to_data(), broken: 1} if isinstance(broken, str) else broken
    with pytest.raises(StoreError, match="here"):
        Fitted.from_data(data, "here")
