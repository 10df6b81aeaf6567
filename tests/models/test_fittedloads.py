from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.workload import Workload
from qplan.models.fitted import KIND, load_fitted
from qplan.models.fittedloads import FittedLoads
from qplan.models.fittingloads import fit_loads
from qplan.models.forecast import Forecast, forecast
from qplan.models.saved import save
from qplan.models.surrogates import Surrogates, open_fitted
from qplan.profiles.observations import from_rows
from tests.models.measured_rows import quickly, report, rows

pytest.importorskip("sklearn")
SHORT = Workload.fixed("isl=512,osl=64")


def loads() -> FittedLoads:
    found = report()[0].fitted.loads
    assert found is not None
    return found


def deployment(model: str = "llama-2-7b", quantization: str = "BF16", gpu: str = "h100", tp: int = 1) -> Deployment:
    return Deployment(
        Model.named(model), Quantization.parse(quantization), Gpu.named(gpu), tp, "vllm", "0.9.0"
    )  # fmt: skip


def value(found: Forecast, name: str) -> float:
    prediction = next(one.prediction for one in found.quantities if one.name == name)
    assert prediction is not None
    return prediction.value


@pytest.mark.slow
def test_a_measured_configuration_is_told_with_its_interval() -> None:
    found = forecast(loads(), deployment(), SHORT, 2.0)
    by_name = {one.name: one for one in found.quantities}
    tpot = by_name["tpot_p50"].prediction
    assert tpot is not None
    assert tpot.lower < 0.0088 < tpot.upper
    assert tpot.coverage == 0.9
    assert "measured (ours); a configuration in the data" in by_name["tpot_p50"].provenance
    assert not by_name["tpot_p50"].extrapolates
    assert value(found, "output_tokens_per_s") == pytest.approx(128, rel=0.1)
    assert (by_name["power_w"].prediction, by_name["power_w"].reason) == (None, "no energy counter")
    assert by_name["ttft_p90"].reason == "not measured"
    assert by_name["quality"].prediction is not None
    assert found.saturation_qps == 6.0
    assert not [warning for warning in found.warnings if "saturation" in warning]


def test_latency_never_falls_with_load_and_follows_the_lengths() -> None:
    curve = [value(forecast(loads(), deployment(), SHORT, qps), "tpot_p50") for qps in np.geomspace(0.3, 12, 15)]
    assert (np.diff(curve) >= 0).all()
    longer = forecast(loads(), deployment(), Workload.fixed("isl=1024,osl=128"), 2.0)
    assert value(longer, "ttft_p50") > 1.5 * value(forecast(loads(), deployment(), SHORT, 2.0), "ttft_p50")


def test_loads_above_saturation_and_beyond_the_measured_ones_are_warned_of() -> None:
    above = forecast(loads(), deployment(), SHORT, 7.0)
    assert (
        "7 req/s is above saturation, 6 req/s, the highest rate that was measured to keep p90:ttft=1s"
        in (above.warnings[0])
    )
    beyond = forecast(loads(), deployment(), SHORT, 12.0)
    assert any("was measured at offered_qps=0.5 to 8; 12 is beyond" in warning for warning in beyond.warnings)
    tpot = next(one for one in beyond.quantities if one.name == "tpot_p50")
    assert tpot.extrapolates
    assert tpot.prediction is not None
    assert tpot.prediction.coverage is None
    with pytest.raises(InputError, match="40 is more than 4 times that: refused"):
        forecast(loads(), deployment(), SHORT, 40.0)


def test_what_was_not_measured_is_told_from_others_or_refused() -> None:
    lengths = forecast(loads(), deployment(), Workload.fixed("isl=700,osl=64"), 2.0)
    assert "ours has no run of llama-2-7b BF16" in lengths.warnings[0]
    assert all(one.extrapolates for one in lengths.quantities if one.name == "tpot_p50")
    assert lengths.saturation_qps is None
    other = forecast(loads(), deployment("codellama-34b"), SHORT, 2.0)
    assert any("model=codellama-34b was never measured" in warning for warning in other.warnings)
    with pytest.raises(InputError, match="too little is alike"):
        forecast(loads(), deployment("codellama-34b", "W4A16"), SHORT, 2.0)
    with pytest.raises(InputError, match="refused beyond 4 times the range"):
        forecast(loads(), deployment(), Workload.fixed("isl=8192,osl=64"), 2.0)
    with pytest.raises(InputError, match="does not fit"):
        forecast(loads(), replace(deployment("llama-2-70b"), tp=1), SHORT, 2.0)


def test_a_mix_of_the_same_lengths_is_the_same_mix() -> None:
    named = replace(SHORT, name="mine")
    assert forecast(loads(), deployment(), named, 2.0).quantities == forecast(
        loads(), deployment(), SHORT, 2.0
    ).quantities  # fmt: skip


def test_a_saved_fit_tells_the_same(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    save(tmp_path / "ours.qplan", KIND, Surrogates(None, loads()).to_parts())
    again = open_fitted(tmp_path / "ours.qplan")
    assert again.gpus == {"H100-SXM5-80GB"}
    assert again.engines(Gpu.named("h100")) == (("vllm", "0.9.0"),)
    answering = again.answering(deployment())
    assert forecast(answering, deployment(), SHORT, 3.0) == forecast(loads(), deployment(), SHORT, 3.0)
    with pytest.raises(StoreError, match="holds loads that were measured, and no step times"):
        load_fitted(tmp_path / "ours.qplan")


@pytest.mark.parametrize("broken", ["loads", "loads_tpot_p50_s"])
def test_a_foreign_file_is_refused(tmp_path: Path, broken: str) -> None:
    parts = {**Surrogates(None, loads()).to_parts(), broken: {"source": "x"}}
    with pytest.raises(StoreError, match="not a fitted model"):
        FittedLoads.from_parts(parts, "file")


def test_own_step_times_answer_before_loads_and_loads_before_those_of_others() -> None:
    both = Surrogates(load_fitted(None), loads())
    assert both.answering(deployment()) is both.loads  # the pack has no vLLM
    engine, version = load_fitted(None).engines(Gpu.named("h100"))[0]
    profiled = replace(deployment(), engine=engine, engine_version=version)
    assert both.answering(profiled) is both.steps
    assert both.answering(deployment("codellama-34b")) is both.steps
    assert {name for name, _ in both.engines(Gpu.named("h100"))} == {engine, "vllm"}


def closed() -> list[dict[str, object]]:
    """Return the runs as closed loops, in which 1 request a second takes 4 in flight."""
    return [
        {**row, "offered_qps": None, "arrivals": None, "concurrency": 4 * float(str(row["offered_qps"]))}
        for row in rows()[:60]
    ]


def test_a_rate_is_looked_up_on_closed_loops_by_what_they_served() -> None:
    with quickly(judged=False):
        fitted = fit_loads(from_rows(closed(), "closed"), "closed", lambda *_: None)[0]
    found = forecast(fitted, deployment(), SHORT, 2.0)
    assert value(found, "tpot_p50") == pytest.approx(0.0088, rel=0.15)
    assert "measured in a closed loop: " in found.warnings[0]
    assert found.rates == pytest.approx((0.5, 8.0), rel=0.2)
    with pytest.raises(InputError, match="--qps: 20 is more than was measured: 32 in flight served"):
        forecast(fitted, deployment(), SHORT, 20.0)
