from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qplan.core import Quantization
from qplan.core.errors import InputError, StoreError
from qplan.models.calibrated import PART, Calibrated
from qplan.models.calibrated_fit import FewPoints, calibrate_fitted
from qplan.models.calibrated_source import read_source
from qplan.models.fitted import KIND, load_fitted
from qplan.models.forecast import forecast
from qplan.models.saved import load, save
from qplan.models.surrogates import Surrogates, open_fitted
from qplan.profiles.observations import from_rows
from tests.models.calibration import made


@pytest.fixture(scope="module")
def both() -> tuple[Calibrated, FewPoints]:
    rows = [
        *made.runs(),
        *made.runs((30.0,), tp=2),
        *made.runs((10.0,), status="failed", reason="fell over", repeat=1),
        *made.runs((11.0,), ttft_mean_s=None, tpot_mean_s=None, ttft_p50_s=0.05, repeat=2),
    ]
    return calibrate_fitted(load_fitted(None), from_rows(rows, "made"), "made")


@pytest.fixture(scope="module")
def ours(both: tuple[Calibrated, FewPoints]) -> Calibrated:
    return both[0]


@pytest.fixture(scope="module")
def saved(ours: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "ours.qplan"
    save(path, KIND, Surrogates(ours, None).to_parts())
    return path


def test_the_error_falls_and_is_told_before_and_after(ours: Calibrated) -> None:
    level, fit = ours.fit_of(made.deployment())
    assert (level, fit.correction.points) == ("deployment", 5)
    for metric in ("tpot", "ttft"):
        assert fit.after[metric] < 0.1 < 0.2 < fit.before[metric]


def test_a_forecast_is_of_the_measured_engine_and_surer_than_the_prior(ours: Calibrated) -> None:
    one, real = made.deployment(), made.engine().at(made.chat(), np.array([20.0]))
    now = forecast(ours, one, made.chat(), 20.0)
    then = forecast(ours.prior, made.deployment(engine="trtllm", version="1.0.0rc3"), made.chat(), 20.0)
    for quantity, plain in zip(now.quantities[:4], then.quantities[:4], strict=True):
        metric, percentile = quantity.name.split("_p")
        truth = real.percentile(metric, float(percentile))[0]
        assert quantity.prediction is not None
        assert plain.prediction is not None
        assert quantity.prediction.value == pytest.approx(truth, rel=0.1)
        assert quantity.prediction.lower < truth < quantity.prediction.upper
        assert quantity.prediction.upper / quantity.prediction.lower < plain.prediction.upper / plain.prediction.lower
    assert "5 measured runs of made (4-39 req/s)" in now.quantities[0].provenance


def test_who_was_not_measured_gets_what_is_nearest_with_more_doubt(ours: Calibrated) -> None:
    own = ours.latency_error(made.deployment())
    for relative, level in (
        (made.deployment(tp=2), "other tensor parallelism"),
        (replace(made.deployment(), quantization=Quantization.parse("W8A8-FP")), "other systems"),
        (made.deployment(engine="trtllm", version="1.0.0rc3"), "other systems"),
    ):
        assert ours.fit_of(relative)[0] == level
        error = ours.latency_error(relative)
        assert error["tpot"].upper / error["tpot"].lower > own["tpot"].upper / own["tpot"].lower
        assert ours.steps_of(relative).extrapolates
        assert ours.steps_of(relative).warnings


def test_stacked_step_times_are_each_deployments_own(ours: Calibrated) -> None:
    many = [made.deployment(), replace(made.deployment(), quantization=Quantization.parse("W8A8-FP"))]
    stacked = ours.step_times(many)
    for n, one in enumerate(many):
        alone = ours.step_times([one])
        assert stacked.decode_s[n] == pytest.approx(alone.decode_s[0])
        assert stacked.first_token is not None
        assert alone.first_token is not None
        assert stacked.first_token.host_s[n] == alone.first_token.host_s[0]


def test_few_points_are_judged_on_the_other_runs(both: tuple[Calibrated, FewPoints]) -> None:
    few = both[1]
    assert list(few.curve.calibrated["tpot"]) == [0, 1, 3]  # 5 of 5 leave none to judge
    assert few.curve.errors("tpot", 3).median < few.curve.errors("tpot", None).median
    low, high = few.designs["ttft"][3]
    assert 0 <= low <= high


def test_it_is_read_as_it_was_saved(ours: Calibrated, saved: Path) -> None:
    again = open_fitted(saved).steps
    assert isinstance(again, Calibrated)
    assert again.systems == ours.systems
    assert again.engines(made.deployment().gpu) == (("vllm", "0.12.0"),)


def test_a_tampered_calibration_is_refused(saved: Path, tmp_path: Path) -> None:
    parts = dict(load(saved, KIND).parts)
    parts[PART] = {"measured_in": "made", "fits": [{"branch": ["h100"]}]}
    save(tmp_path / "bad.qplan", KIND, parts)
    with pytest.raises(StoreError, match="not a calibration"):
        open_fitted(tmp_path / "bad.qplan")


@pytest.mark.slow
def test_plans_take_the_corrected_times_under_the_measured_engine(ours: Calibrated, saved: Path) -> None:
    source = read_source(str(saved), ["llama-3.1-8b"])
    assert source.found is not None
    assert source.known_error is not None
    assert len(source.found.deployments) == len(set(source.found.deployments)) == len(source.errors)
    engines = {str(one): one.engine for one in source.found.deployments}
    assert engines[str(made.deployment())] == engines[str(made.deployment(tp=2))] == "vllm"
    assert set(engines.values()) == {"vllm", "trtllm"}
    n = [str(one) for one in source.found.deployments].index(str(made.deployment()))
    error = source.errors[n]
    assert error is not None
    assert error["measured_over_predicted"]["tpot"]["upper"] == ours.latency_error(made.deployment())["tpot"].upper
    assert (
        source.known_error["measured_over_predicted"]["tpot"]["upper"]
        > ours.latency_error(made.deployment())["tpot"].upper
    )
    assert read_source(str(saved), ["llama-1"]).found is None


@pytest.mark.slow
def test_a_fit_without_calibration_plans_as_well(tmp_path: Path) -> None:
    prior = load_fitted(None)
    save(tmp_path / "plain.qplan", KIND, Surrogates(prior, None).to_parts())
    source = read_source(str(tmp_path / "plain.qplan"), ["llama-3.1-8b"])
    assert source.found is not None
    assert source.known_error is not None
    assert source.known_error["measured_over_predicted"]["ttft"]["upper"] == prior.latency_error["ttft"].upper


def test_without_a_run_there_is_nothing_to_calibrate_on() -> None:
    table = from_rows(made.runs((5.0,), status="failed", reason="fell over"), "made")
    with pytest.raises(InputError, match="--measured: made has no serving row"):
        calibrate_fitted(load_fitted(None), table, "made")
