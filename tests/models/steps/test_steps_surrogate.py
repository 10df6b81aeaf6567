from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qplan.core.errors import StoreError
from qplan.core.workload import Workload
from qplan.models.sharing import SharingModel
from qplan.models.steps.fitting import fit_steps
from qplan.models.steps.surrogate import StepSurrogate
from tests.models.steps.made_up import deployment, timed

SMALL, LARGE = deployment("llama-2-7b"), deployment("llama-3.1-8b", "W4A16", tp=2)


@pytest.fixture(scope="module")
def surrogate() -> StepSurrogate:
    return fit_steps(timed([SMALL, LARGE]))


def test_the_grid_reads_as_the_surrogate(surrogate: StepSurrogate) -> None:
    grid = surrogate.grid(LARGE)
    rng = np.random.default_rng(5)
    prefill = np.where(rng.random(400) < 0.5, 0, rng.integers(1, 8192, 400)).astype(float)
    batch = rng.integers(0, 512, 400).astype(float)
    kv = batch * rng.integers(16, 30000, 400).astype(float)
    expected = surrogate.iteration_s(LARGE, prefill, batch, kv)
    some = expected > 0
    error = np.abs(grid.at(prefill, batch, kv)[some] / expected[some] - 1)
    assert np.median(error) < 0.005
    assert error.max() < 0.06
    assert grid.time_s[0, 0].max() == 0


def test_step_times_feed_the_serving_model(surrogate: StepSurrogate) -> None:
    deployments = [SMALL, LARGE]
    steps = surrogate.step_times(deployments)
    alone = surrogate.iteration_s(LARGE, np.array([512.0]), np.zeros(1), np.zeros(1))
    assert steps.prefill(np.array([512.0]))[1] == pytest.approx(alone)
    loaded = SharingModel.of(deployments, steps).at(Workload.of("one", "chat", [(512, 128, 1)], "made up"), np.ones(2))
    assert (loaded.mean("tpot") > steps.decode_s[:, 0, 0]).all()


def test_another_engine_answers_for_an_unknown_one_and_says_so(surrogate: StepSurrogate) -> None:
    newer = deployment("llama-2-7b", version="2")
    assert surrogate.level(SMALL) == "deployment"
    assert surrogate.level(newer) == "deployment of made-up 1"
    assert surrogate.engine_for(newer) == ("made-up", "1")
    assert (surrogate.factors_of(newer) == surrogate.factors_of(SMALL)).all()


def test_of_several_engines_the_same_in_another_version_answers() -> None:
    both = fit_steps(timed([deployment(version=version) for version in ("1", "2")]))
    assert both.engine_for(deployment(version="3")) == ("made-up", "2")


def test_data_reads_back_as_it_was(surrogate: StepSurrogate) -> None:
    again = StepSurrogate.from_data(json.loads(json.dumps(surrogate.to_data())))
    work = np.array([0.0, 700]), np.array([20.0, 3]), np.array([9000.0, 4000])
    assert (again.iteration_s(LARGE, *work) == surrogate.iteration_s(LARGE, *work)).all()
    assert again.factors.keys() == surrogate.factors.keys()


def spoil(data: dict[str, Any], how: str) -> Any:
    first = data["branches"][0]
    match how:
        case "foreign":
            return {"weights": [1, 2]}
        case "text":
            return "factors"
        case "older":
            return {**data, "version": 0}
        case "renamed":
            return {**data, "parts": data["parts"][1:]}
        case "no branches":
            return {**data, "branches": None}
        case "ragged":
            return {**data, "residuals": [{**data["residuals"][0], "log_ratio": [[1.0], [1.0, 2.0]]}]}
        case "falling":
            return {**data, "residuals": [{**data["residuals"][0], "batches": data["residuals"][0]["batches"][::-1]}]}
        case "huge":
            huge = [[1e3 for _ in row] for row in data["residuals"][0]["log_ratio"]]
            return {**data, "residuals": [{**data["residuals"][0], "log_ratio": huge}]}
        case "negative":
            factors: Any = [-1.0, *first["factors"][1:]]
        case "infinite":
            factors = [float("inf"), *first["factors"][1:]]
        case "short":
            factors = first["factors"][1:]
        case "words":
            factors = ["1.0", *first["factors"][1:]]
        case "deep":
            return {**data, "branches": [{**first, "branch": ["a", "b"]}]}
    return {**data, "branches": [{**first, "factors": factors}]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("foreign", "not a step surrogate"),
        ("text", "not a step surrogate"),
        ("older", "made by another version"),
        ("renamed", "made by another version"),
        ("no branches", "'branches' or 'residuals' is not a list"),
        ("negative", "branch 1: expected 'factors'"),
        ("infinite", "branch 1: expected 'factors'"),
        ("short", "branch 1: expected 'factors'"),
        ("words", "branch 1: expected 'factors'"),
        ("ragged", "residual 1: expected 'log_ratio', a list of finite numbers"),
        ("falling", "residual 1: expected rising 'batches'"),
        ("huge", "residual 1: expected rising 'batches'"),
        ("deep", "branch 1: expected 'branch'"),
    ],
)
def test_spoilt_data_is_refused(surrogate: StepSurrogate, how: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        StepSurrogate.from_data(spoil(surrogate.to_data(), how), "file.json")
