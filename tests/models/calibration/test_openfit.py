from __future__ import annotations

import numpy as np
import pytest

from qplan.models.calibration import OpenLoad, shipped_lessons
from qplan.models.calibration.latency import METRICS, correct, left_out, pick
from qplan.models.calibration.loops import LoopsPrior
from qplan.models.calibration.priors import ClosedLoad
from qplan.models.fitted import load_fitted
from qplan.models.profiled import Profiled
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats
from tests.models.calibration import made


@pytest.fixture(scope="module")
def open_prior() -> LoopsPrior:
    one = made.deployment()
    return LoopsPrior(Profiled((one,), load_fitted(None).steps.step_times([one]), ("made up",)))


@pytest.fixture(scope="module")
def measured() -> tuple[tuple[OpenLoad, ...], dict[str, Floats]]:
    runs = made.runs()
    rows = tuple(OpenLoad(made.deployment(), made.chat(), run["offered_qps"]) for run in runs)
    return rows, {metric: np.array([run[f"{metric}_mean_s"] for run in runs]) for metric in METRICS}


def test_three_open_loops_find_the_engine(
    open_prior: LoopsPrior, measured: tuple[tuple[OpenLoad, ...], dict[str, Floats]]
) -> None:
    rows, seconds = measured
    some = np.array([0, 2, 4])
    found = correct(open_prior, pick(rows, some), {m: seconds[m][some] for m in METRICS}, shipped_lessons())
    steps = found.steps(open_prior.profiled.steps)
    served, real = SharingModel.of([made.deployment()], steps), made.engine()
    for rate in (14.0, 32.0):
        now, then = served.at(made.chat(), np.array([rate])), real.at(made.chat(), np.array([rate]))
        for metric in METRICS:
            assert now.mean(metric) == pytest.approx(then.mean(metric), rel=0.1)
        assert now.percentile("ttft", 90) == pytest.approx(then.percentile("ttft", 90), rel=0.15)
    assert served.saturation_qps(made.chat(), ()) == pytest.approx(real.saturation_qps(made.chat(), ()), rel=0.1)


def test_what_is_predicted_is_what_is_served(
    open_prior: LoopsPrior, measured: tuple[tuple[OpenLoad, ...], dict[str, Floats]]
) -> None:
    rows, seconds = measured
    found = correct(open_prior, rows[:2], {m: seconds[m][:2] for m in METRICS}, shipped_lessons())
    predicted = found.predict(open_prior, rows)
    served = SharingModel.of([made.deployment()], found.steps(open_prior.profiled.steps))
    for metric in METRICS:
        again = [served.at(made.chat(), np.array([row.rate_qps])).mean(metric)[0] for row in rows]
        assert predicted[metric] == pytest.approx(again, rel=1e-6)


def test_a_run_far_beyond_the_priors_saturation_still_corrects(open_prior: LoopsPrior) -> None:
    stable = SharingModel.of([made.deployment()], open_prior.profiled.steps).saturation_qps(made.chat(), ())[0]
    rows = tuple(OpenLoad(made.deployment(), made.chat(), share * stable) for share in (0.2, 0.6, 1.3))
    fast = {"tpot": np.array([3e-3, 4e-3, 6e-3]), "ttft": np.array([1e-2, 1.1e-2, 1.2e-2])}
    found = correct(open_prior, rows, fast, shipped_lessons())
    served = SharingModel.of([made.deployment()], found.steps(open_prior.profiled.steps))
    assert served.saturation_qps(made.chat(), ())[0] > 1.3 * stable


def test_left_out_ratios_are_close_to_one_and_nan_where_unknown(
    open_prior: LoopsPrior, measured: tuple[tuple[OpenLoad, ...], dict[str, Floats]]
) -> None:
    rows, seconds = measured
    known = {"tpot": seconds["tpot"], "ttft": np.where(np.arange(len(rows)) == 1, np.nan, seconds["ttft"])}
    ratios = left_out(open_prior, rows, known, shipped_lessons())
    assert ratios["tpot"] == pytest.approx(np.ones(len(rows)), abs=0.3)
    assert np.isnan(ratios["ttft"]).tolist() == [False, True, False, False, False]


def test_rows_of_both_loops_keep_their_order(open_prior: LoopsPrior) -> None:
    one = made.deployment()
    rows = (OpenLoad(one, made.chat(), 5.0), ClosedLoad(one, 512, 128, 8), OpenLoad(one, made.chat(), 20.0))
    together = open_prior(rows)
    for metric in METRICS:
        alone = np.concatenate([open_prior((row,))[metric].seconds for row in rows])
        assert together[metric].seconds == pytest.approx(alone)
