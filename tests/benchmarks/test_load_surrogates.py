"""Load-level surrogates on public measurements; run with ``pytest -s tests/benchmarks/test_load_surrogates.py``.

Every figure is the mean absolute relative error on rows that no fit has seen, variances and lengths included.
Inside a configuration at most one of its rows is held out at a time: interior loads are dealt into folds, one row of
each configuration a fold; the largest loads into five. The rest of the configuration and all others are in the fit.
Log-log interpolation gets the same rows of the same configuration.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from qplan.models.load.boosting import MonotoneBoosting
from qplan.models.load.contract import LoadSurrogate
from qplan.models.load.curves import PooledCurves
from qplan.models.load.monotone import AMORTISED, RISING
from qplan.models.load.process import PooledProcess
from qplan.models.steptimes import Floats, Ints

pytestmark = pytest.mark.model_figures

DATA = Path(__file__).parents[2] / "../shared/data"
FEWEST_LOADS = 4  # of a configuration whose errors are counted; the others are in the fits alone
FEWEST_DONE = 0.95  # of its requests, for a run of llm-pilot to be one of the service and not of its failures
MODEL, CONFIGURATION, LOAD = 0, 1, 2

Predict = Callable[[Ints, Ints], Floats]

# Billions of parameters, all and active, as the models' cards state them.
PARAMETERS = {
    "gemma-2-27b": (27.2, 27.2), "gemma-2-2b": (2.6, 2.6), "gemma-2-9b": (9.2, 9.2), "3.1-405B": (405.9, 405.9),
    "3.1-70B": (70.6, 70.6), "3.1-8B": (8.0, 8.0), "Phi-3-medium": (14.0, 14.0), "Phi-3-mini": (3.8, 3.8),
    "Phi-3-small": (7.4, 7.4), "Mistral-7B": (7.2, 7.2), "Mistral-Large": (123, 123), "Mistral-Nemo": (12.2, 12.2),
    "Mixtral-8x22B": (141, 39), "Mixtral-8x7B": (46.7, 12.9), "starcoder2-15b": (16, 16), "starcoder2-3b": (3.0, 3.0),
    "starcoder2-7b": (7.2, 7.2), "CodeLlama-13b": (13, 13), "CodeLlama-34b": (33.7, 33.7), "CodeLlama-70b": (69, 69),
    "CodeLlama-7b": (6.7, 6.7), "codegemma-1.1-2b": (2.5, 2.5), "codegemma-7b": (8.5, 8.5),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Rows X (N, F), their model, configuration and load in the first three columns, and metrics by name."""

    X: Floats
    metrics: dict[str, Floats]


def ml_energy() -> Measured:
    """Text LLMs of ml-energy-v2 (family ``llm_text_generation``); the load is the maximum batch size."""
    rows = [row for row in _rows("ml-energy-v2/flat_llm.csv") if row["family"] == "llm_text_generation"]
    X = []
    for row in rows:
        total, active = next(size for name, size in PARAMETERS.items() if name in row["Model"])
        gpus = int(row["TP"]) * int(row["PP"])
        h100, code = "H100" in row["GPU"], row["task"] == "code"
        X.append([float(row["Max BS (reqs)"]), h100, code, np.log(total), np.log(active), np.log(gpus)])
    joules = np.array([float(row["Energy/req (J)"]) for row in rows])
    tokens = np.array([float(row["Avg Output Tokens"]) for row in rows])
    tpot = np.array([float(row["Avg TPOT (s)"]) for row in rows])
    roles = _codes(rows, ("Model",)), _codes(rows, ("task", "Model", "GPU", "TP", "PP"))
    metrics = {"J/request": joules, "J/token": joules / tokens, "TPOT": tpot}
    return Measured(np.column_stack([*roles, X]), metrics)


def llm_pilot() -> Measured:
    """Runs of llm-pilot that lost fewer than 5 % of their requests; the load is the number of users."""
    llms = {row["model"]: row for row in _rows("llm-pilot/llm_features.csv")}
    gpus = {row["gpu"]: row for row in _rows("llm-pilot/gpu_features.csv")}
    rows = [
        row
        for row in _rows("llm-pilot/aggregated_from_raw.csv")
        if int(row["n_req_ok"]) >= FEWEST_DONE * int(row["n_req_all"])
    ]
    X = []
    for row in rows:
        llm, gpu = llms[row["model"]], gpus[row["gpu"]]
        count = float(gpu["gpu_n_gpus"])
        tflops = max(float(gpu["gpu_tflops_tc_fp16"]), float(gpu["gpu_tflops_cuda_mixed"]))
        weights = 2 * float(llm["model_n_parameters"]) / count  # GB on each GPU at 16 bits
        read, computed = weights / float(gpu["gpu_memory_bandwidth"]), weights / tflops
        room = float(gpu["gpu_memory_capacity_gb"]) / weights
        kind = [llm["model_is_flash_attention"] == "TRUE", llm["model_is_encoder_decoder"] == "TRUE"]
        X.append([float(row["num_users"]), *np.log([read, computed, room, count, float(llm["model_n_layers"])]), *kind])
    roles = _codes(rows, ("model",)), _codes(rows, ("model", "gpu"))
    metrics = {"TTFT": "ttft_p50_ms", "ITL": "itl_p50_ms"}
    return Measured(
        np.column_stack([*roles, X]),
        {name: np.array([float(row[column]) for row in rows]) for name, column in metrics.items()},
    )


@pytest.mark.skipif(not (DATA / "ml-energy-v2").exists(), reason="ml-energy-v2 is not beside the checkout")
def test_energy_and_tpot_over_load_on_ml_energy() -> None:
    data = ml_energy()
    errors = _report("ml-energy-v2, text LLMs", data, {"J/request": AMORTISED, "J/token": AMORTISED, "TPOT": RISING})
    for metric, (interpolating, extrapolating) in {"J/request": (0.0399, 0.0783), "TPOT": (0.0402, 0.0949)}.items():
        # The protocol is the one that the published baselines were found with.
        assert errors[metric, "log-log interpolation", "between"] == pytest.approx(interpolating, abs=5e-4)
        assert errors[metric, "log-log interpolation", "largest"] == pytest.approx(extrapolating, abs=5e-4)
    # Where the mean output tokens of the mix are known, J/request is as far off as J/token.
    assert errors["J/token", "pooled process", "between"] < 0.030
    assert errors["J/token", "pooled process", "largest"] < 0.060
    assert errors["J/request", "pooled process", "largest"] < 0.060
    assert errors["TPOT", "pooled process", "largest"] < 0.070
    # Under 3.0 % was aimed at here too. Runs on H100 scatter by 5 to 6 % around any smooth curve, TPOT and energy of
    # the same run together (correlation 0.6), which no other load tells of; on A100 TPOT is 2.3 % off. Tried with the
    # same folds, TPOT and J/request between loads: noise that depends on the features 3.40, 3.21 %; process and curves
    # averaged, weights from inner folds 3.35, 3.17 %; the better of the two in inner folds 3.56, 3.10 %; J/token times
    # output tokens, a process of each, 3.11 %. None is better at both, and none reaches 3.0 %.
    assert errors["J/request", "pooled process", "between"] < 0.033
    assert errors["TPOT", "pooled process", "between"] < 0.037
    for metric in data.metrics:
        assert errors[metric, "pooled process", "model out"] < errors[metric, "ExtraTrees", "model out"]


@pytest.mark.skipif(not (DATA / "llm-pilot").exists(), reason="llm-pilot is not beside the checkout")
def test_ttft_and_itl_over_users_on_llm_pilot() -> None:
    errors = _report("llm-pilot", llm_pilot(), {"TTFT": RISING, "ITL": RISING})
    assert errors["TTFT", "pooled process", "between"] < 0.070
    assert errors["ITL", "pooled process", "between"] < 0.035


def _report(
    title: str, data: Measured, elasticities: dict[str, tuple[float, float]]
) -> dict[tuple[str, str, str], float]:
    """Print and return the errors by metric, estimator and what was held out."""
    X, everything = data.X, np.arange(len(data.X))
    questions = {
        "between": list(_interior(X)),
        "largest": list(_largest(X)),
        "model out": [np.flatnonzero(X[:, MODEL] == model) for model in np.unique(X[:, MODEL])],
    }
    found: dict[tuple[str, str, str], float] = {}
    sys.stdout.write(
        f"\n{title}: {len(X)} rows, {len(np.unique(X[:, CONFIGURATION]))} configurations; mean (median), %\n"
        f"  {'metric':<10} {'estimator':<22} {'between loads':>16} {'largest load':>16} {'model left out':>16}\n"
    )
    for metric, y in data.metrics.items():
        for name, (asked, predict) in _estimators(X, y, elasticities[metric]).items():
            line = f"  {metric:<10} {name:<22}"
            for question, folds in questions.items():
                if question not in asked:
                    line += " " * 17
                    continue
                error = np.concatenate(
                    [np.abs(predict(np.setdiff1d(everything, held), held) / y[held] - 1) for held in folds]
                )
                found[metric, name, question] = float(error.mean())
                line += f" {100 * error.mean():>9.2f} ({100 * np.median(error):4.1f})"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return found


def _estimators(X: Floats, y: Floats, elasticity: tuple[float, float]) -> dict[str, tuple[tuple[str, ...], Predict]]:
    """Return what each estimator is asked, and a function of rows to learn from and rows to predict."""

    def surrogate(kind: type[LoadSurrogate]) -> Predict:
        def predict(learn: Ints, held: Ints) -> Floats:
            return kind(LOAD, (MODEL, CONFIGURATION), elasticity).fit(X[learn], y[learn]).predict(X[held])

        return predict

    within, every = ("between", "largest"), ("between", "largest", "model out")
    return {
        "log-log interpolation": (within, partial(_interpolated, X, y)),
        "ExtraTrees": (("model out",), partial(_trees, X, y)),
        "pooled process": (every, surrogate(PooledProcess)),
        "pooled curves": (every, surrogate(PooledCurves)),
        "monotone boosting": (("model out",), surrogate(MonotoneBoosting)),
    }


def _interior(X: Floats) -> Iterator[Ints]:
    """Deal interior loads into folds, at most one row of each configuration in each."""
    draw = np.random.default_rng(0)
    interior = [draw.permutation(rows[1:-1]) for rows in _curves(X)]
    for fold in range(max(map(len, interior))):
        yield np.array([rows[fold] for rows in interior if fold < len(rows)])


def _largest(X: Floats) -> Iterator[Ints]:
    """Deal the largest loads of all configurations into five folds."""
    last = np.random.default_rng(0).permutation([rows[-1] for rows in _curves(X)])
    for fold in range(5):
        yield last[fold::5]


def _curves(X: Floats) -> Iterator[Ints]:
    """Return the rows of each configuration with enough loads, by load."""
    for configuration in np.unique(X[:, CONFIGURATION]):
        rows = np.flatnonzero(X[:, CONFIGURATION] == configuration)
        if len(rows) >= FEWEST_LOADS:
            yield rows[np.argsort(X[rows, LOAD])]


def _interpolated(X: Floats, y: Floats, learn: Ints, held: Ints) -> Floats:
    """Join the points of each configuration in logarithms; beyond them the last segment is prolonged."""
    predicted = []
    for row in held:
        own = learn[X[learn, CONFIGURATION] == X[row, CONFIGURATION]]
        own = own[np.argsort(X[own, LOAD])]
        x, z, at = np.log(X[own, LOAD]), np.log(y[own]), np.log(X[row, LOAD])
        slope = (z[-1] - z[-2]) / (x[-1] - x[-2])
        predicted.append(np.exp(z[-1] + slope * (at - x[-1]) if at > x[-1] else np.interp(at, x, z)))
    return np.array(predicted)


def _trees(X: Floats, y: Floats, learn: Ints, held: Ints) -> Floats:
    """Pool all rows in extremely randomised trees over load and features, as a plain approach would."""
    columns = [LOAD, *range(LOAD + 1, X.shape[1])]
    trees = ExtraTreesRegressor(200, random_state=0).fit(X[learn][:, columns], np.log(y[learn]))
    predicted: Floats = np.exp(trees.predict(X[held][:, columns]))
    return predicted


def _rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _codes(rows: list[dict[str, str]], columns: tuple[str, ...]) -> Floats:
    keys = [tuple(row[column] for column in columns) for row in rows]
    known = {key: code for code, key in enumerate(sorted(set(keys)))}
    return np.array([known[key] for key in keys], dtype=float)
