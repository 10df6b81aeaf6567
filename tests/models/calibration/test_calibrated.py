from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qplan.core import Workload
from qplan.core.errors import InputError
from qplan.models.calibration import (
    Calibrated,
    ClosedLoad,
    ClosedLoopPrior,
    Lesson,
    OpenLoad,
    OpenLoopPrior,
    calibrate,
    choose,
    shipped_lessons,
)
from qplan.models.profiled import Profiled
from qplan.models.steptimes import Floats

Loads = Callable[[int], list[ClosedLoad]]
ENGINE = {"weights": 1.4, "batching": 0.8, "prefills": 0.9, "step host": 0.5}


def engine(prior: ClosedLoopPrior, rows: list[ClosedLoad], seed: int = 0) -> dict[str, Floats]:
    """Measure an engine whose steps, prefills and host code differ from the prior's, with 2 % of noise."""
    noise = np.random.default_rng(seed).normal(0, 0.02, (2, len(rows)))
    parts = prior(rows)
    tpot = parts["tpot"].seconds @ np.array([ENGINE[name] for name in parts["tpot"].names])
    ttft = parts["ttft"]
    burst = ttft.seconds[:, ttft.names.index("burst")] / 10 + ttft.seconds[:, 0] * 0.9 + 5e-3
    return {"tpot": tpot * np.exp(noise[0]), "ttft": burst * np.exp(noise[1])}


def at(measured: dict[str, Floats], index: Any) -> dict[str, Floats]:
    return {metric: seconds[index] for metric, seconds in measured.items()}


def error(calibrated: Calibrated[ClosedLoad], rows: list[ClosedLoad], measured: dict[str, Floats]) -> dict[str, float]:
    found = calibrated(rows)
    return {metric: float(np.median(np.abs(found[metric].total / measured[metric] - 1))) for metric in found}


def test_more_points_mean_less_error_on_rows_not_seen(prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(0)
    measured = engine(prior, rows)
    order = choose(np.array([row.coordinates for row in rows]), 8)
    unseen = np.setdiff1d(np.arange(len(rows)), order)
    errors = []
    for count in (0, 1, 5, 8):
        chosen = order[:count]
        calibrated = calibrate(prior, [rows[n] for n in chosen], at(measured, chosen), shipped_lessons())
        errors.append(error(calibrated, [rows[n] for n in unseen], at(measured, unseen)))
    for metric in ("ttft", "tpot"):
        assert errors[0][metric] > errors[1][metric] > errors[2][metric]
        assert errors[3][metric] < 0.05


def test_points_at_one_tensor_parallelism_help_another(prior: ClosedLoopPrior, loads: Loads) -> None:
    measured = engine(prior, loads(0))
    calibrated = calibrate(prior, loads(0), measured)
    others = engine(prior, loads(2), seed=1)
    assert (
        error(calibrated, loads(2), others)["tpot"] < 0.05 < error(calibrate(prior, [], {}), loads(2), others)["tpot"]
    )


def test_without_points_and_lessons_it_is_the_prior(prior: ClosedLoopPrior, loads: Loads) -> None:
    calibrated: Calibrated[ClosedLoad] = calibrate(prior, [], {})
    for metric, parts in prior(loads(0)).items():
        assert calibrated(loads(0))[metric].total == pytest.approx(parts.total)
        assert calibrated.corrections[metric].error is None
        assert calibrated.corrections[metric].points == 0


def test_one_point_scales_the_whole(prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(0)
    tpot = prior(rows)["tpot"].total
    calibrated = calibrate(prior, rows[:1], {"tpot": 1.5 * tpot[:1]})
    assert calibrated(rows)["tpot"].total / tpot == pytest.approx(np.full(len(rows), 1.5), rel=0.01)
    # As much as systems differ and runs scatter: a doubtful point moves less.
    lesson = Lesson(prior([])["tpot"].names, (1.0, 1.0, 1.0, 0.0), (0.1,) * 4, 0.05, 0.2, 0.2, 9)
    doubted = calibrate(prior, rows[:1], {"tpot": 1.5 * tpot[:1]}, {"tpot": lesson})
    assert doubted(rows)["tpot"].total / tpot == pytest.approx(np.full(len(rows), 1.5**0.5))


def test_it_keeps_to_more_load_is_never_faster(prior: ClosedLoopPrior, profile: Profiled, loads: Loads) -> None:
    rows = [row for row in loads(0) if row.concurrency != 16]
    measured = {"tpot": np.random.default_rng(2).uniform(5e-3, 50e-3, len(rows))}  # without rhyme or reason
    sweep = [ClosedLoad(profile.deployments[0], 700, 300, concurrency) for concurrency in range(1, 200, 7)]
    assert (np.diff(calibrate(prior, rows, measured)(sweep)["tpot"].total) >= 0).all()


def test_leaving_points_out_tells_the_error(prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(0)
    measured = engine(prior, rows)
    estimate = calibrate(prior, rows, measured).corrections["tpot"].error
    assert estimate is not None
    assert 0.005 < estimate < 0.05  # the noise is 2 %
    wrong = calibrate(prior, rows[:3], {"tpot": measured["tpot"][:3] * [1, 4, 0.3]}).corrections["tpot"].error
    assert wrong is not None
    assert wrong > 0.3


def test_a_metric_that_a_point_lacks_is_left_out(prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(0)
    measured = engine(prior, rows)
    measured["ttft"][::2] = np.nan
    corrections = calibrate(prior, rows, measured).corrections
    assert (corrections["ttft"].points, corrections["tpot"].points) == (8, 16)


def test_a_calibration_can_be_calibrated_further(prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(0)
    first = calibrate(prior, rows, engine(prior, rows))
    slower = {metric: seconds * 1.3 for metric, seconds in engine(prior, rows, seed=4).items()}
    second = calibrate(first, rows[::3], at(slower, slice(None, None, 3)))
    assert error(second, rows, slower)["tpot"] < 0.05 < error(first, rows, slower)["tpot"]


def test_open_loops_are_calibrated_alike(profile: Profiled) -> None:
    prior = OpenLoopPrior(profile)
    rows = [OpenLoad(profile.deployments[0], Workload.fixed("isl=512,osl=128"), rate) for rate in (0.5, 2, 4, 6, 8)]
    parts = prior(rows)
    measured = {"tpot": parts["tpot"].seconds @ [1.3, 1.0, 1.0, 0.0], "ttft": parts["ttft"].total * 1.2 + 4e-3}
    calibrated = calibrate(prior, rows[::2], {metric: seconds[::2] for metric, seconds in measured.items()})
    for metric, seconds in measured.items():
        assert calibrated(rows)[metric].total == pytest.approx(seconds, rel=0.05)


def test_a_point_beyond_the_priors_saturation_is_refused(profile: Profiled) -> None:
    rows = [OpenLoad(profile.deployments[0], Workload.fixed("isl=512,osl=128"), rate) for rate in (1, 1e4)]
    with pytest.raises(InputError, match="saturated at point 1"):
        calibrate(OpenLoopPrior(profile), rows, {"tpot": [0.01, 0.01]})
    assert calibrate(OpenLoopPrior(profile), rows, {"tpot": [0.01, np.nan]}).corrections["tpot"].points == 1


def test_it_is_saved_as_plain_data(prior: ClosedLoopPrior, loads: Loads) -> None:
    rows = loads(0)
    calibrated = calibrate(prior, rows, engine(prior, rows))
    again = Calibrated.from_data(json.loads(json.dumps(calibrated.to_data())), prior)
    assert again.corrections == calibrated.corrections
    assert again(rows)["ttft"].total.tolist() == calibrated(rows)["ttft"].total.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": [1.0]}, "for each name"),
        ({"left_out": [1.0]}, "an error each point"),
        ({"coefficients": [1.0, -1.0, 0.0, 0.0]}, "0 or more"),
        ({"deviation": [1.0, float("inf"), 1.0, 1.0]}, "finite"),
        ({"points": "some"}, "not a correction"),
    ],
)
def test_foreign_data_is_refused(prior: ClosedLoopPrior, change: dict[str, Any], message: str) -> None:
    data = calibrate(prior, [], {}).to_data()
    with pytest.raises(InputError, match=message):
        Calibrated.from_data({"tpot": {**data["tpot"], **change}}, prior)


@pytest.mark.parametrize("data", [3, {"tpot": 3}])
def test_what_is_no_calibration_at_all_is_refused(prior: ClosedLoopPrior, data: Any) -> None:
    with pytest.raises(InputError, match="calibration: "):
        Calibrated.from_data(data, prior)


def test_corrections_of_other_parts_are_refused(prior: ClosedLoopPrior, loads: Loads) -> None:
    data = calibrate(prior, [], {}).to_data()
    swapped = Calibrated.from_data({"ttft": data["tpot"], "tpot": data["ttft"]}, prior)
    with pytest.raises(InputError, match="made for the parts weights"):
        swapped(loads(0))


def test_a_metric_without_correction_is_named(prior: ClosedLoopPrior, loads: Loads) -> None:
    calibrated = Calibrated.from_data({"tpot": calibrate(prior, [], {}).to_data()["tpot"]}, prior)
    with pytest.raises(InputError, match="predicts ttft"):
        calibrated(loads(0))


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"tpot": [0.01]}, "one number for each of 16 points"),
        ({"tpot": [0.0] * 16}, "point 0 is 0 s; expected a positive time"),
        ({"tpots": [0.01] * 16}, "no metric 'tpots'.*did you mean 'tpot'"),
    ],
)
def test_what_was_not_measured_is_refused(
    prior: ClosedLoopPrior, loads: Loads, measured: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(prior, loads(0), measured)
