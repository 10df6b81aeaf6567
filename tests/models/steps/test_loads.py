from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.core.workload import Workload
from qplan.models.closedloop import closed_loop
from qplan.models.sharing import SharingModel
from qplan.models.steps.fitting import fit_steps
from qplan.models.steps.loads import LOAD_COLUMNS, LoadPoints, fit_loads
from qplan.models.steps.surrogate import StepSurrogate
from tests.models.steps.made_up import deployment, timed

MEASURED = [deployment("llama-2-7b", version="2"), deployment("llama-2-13b", version="2")]
SLOWER = 1.4
NAN = float("nan")


@pytest.fixture(scope="module")
def prior() -> StepSurrogate:
    return fit_steps(timed([deployment("llama-2-7b"), deployment("llama-2-13b"), deployment("llama-2-13b", tp=2)]))


def run(prior: StepSurrogate, one: Deployment, tokens: tuple[int, int], rate: float, concurrency: float) -> list[float]:
    """Return a run's row as an engine would show it whose every iteration takes `SLOWER` times the prior's."""
    steps = prior.step_times([one])
    slow = dataclasses.replace(steps, prefill_s=SLOWER * steps.prefill_s, decode_s=SLOWER * steps.decode_s)
    if np.isnan(rate):
        ttft, tpot = closed_loop(slow, *tokens, int(concurrency))
    else:
        loaded = SharingModel.of([one], slow).at(Workload.of("run", "chat", [(*tokens, 1)], ""), np.array([rate]))
        ttft, tpot = loaded.mean("ttft"), loaded.mean("tpot")
    return [*tokens, rate, concurrency, float(ttft[0]), float(tpot[0])]


def loads(prior: StepSurrogate, kinds: list[tuple[float, float]]) -> LoadPoints:
    rows = [
        (n, *run(prior, one, tokens, rate, concurrency))
        for n, one in enumerate(MEASURED)
        for tokens in ((256, 128), (1024, 64))
        for rate, concurrency in kinds
    ]
    index, *columns = (np.array(column) for column in zip(*rows, strict=True))
    return LoadPoints(tuple(MEASURED), index, *columns)


@pytest.mark.parametrize("kinds", [[(NAN, 1.0), (NAN, 16.0)], [(0.3, NAN), (1.5, NAN)]], ids=["closed", "open"])
def test_a_slower_engine_is_found(prior: StepSurrogate, kinds: list[tuple[float, float]]) -> None:
    fitted = fit_loads(loads(prior, kinds), prior)
    work = np.array([0.0, 0, 512]), np.array([1.0, 24, 0]), np.array([300.0, 12000, 0])
    for one in MEASURED:
        assert fitted.level(one) == "deployment"
        ratio = fitted.iteration_s(one, *work) / prior.iteration_s(one, *work)
        np.testing.assert_allclose(ratio, SLOWER, rtol=0.1)


def test_the_engine_is_learned_for_deployments_that_were_not_run(prior: StepSurrogate) -> None:
    fitted = fit_loads(loads(prior, [(NAN, 1.0), (NAN, 16.0)]), prior)
    other = deployment("llama-2-13b", tp=2, version="2")
    assert fitted.level(other) == "GPU and engine"
    work = np.array([0.0, 512]), np.array([24.0, 0]), np.array([12000.0, 0])
    np.testing.assert_allclose(fitted.iteration_s(other, *work) / prior.iteration_s(other, *work), SLOWER, rtol=0.15)


def test_an_engine_that_was_timed_too_is_corrected_throughout(prior: StepSurrogate) -> None:
    slow = loads(prior, [(NAN, 1.0), (NAN, 16.0)])
    same = dataclasses.replace(slow, deployments=tuple(dataclasses.replace(d, engine_version="1") for d in MEASURED))
    fitted, other = fit_loads(same, prior), deployment("llama-2-13b", tp=2)
    work = np.array([0.0, 512]), np.array([24.0, 0]), np.array([12000.0, 0])
    assert fitted.level(other) == "deployment"
    np.testing.assert_allclose(fitted.iteration_s(other, *work) / prior.iteration_s(other, *work), SLOWER, rtol=0.1)


def test_what_was_not_run_on_keeps_its_prior(prior: StepSurrogate) -> None:
    fitted = fit_loads(loads(prior, [(NAN, 16.0)]), prior)
    for branch, factors in prior.factors.items():
        assert (fitted.factors[branch] == factors).all()


def test_a_rate_that_the_prior_thinks_unstable_is_learned_from(prior: StepSurrogate) -> None:
    one = MEASURED[0]
    rate = 1.5 * float(SharingModel.of([one], prior.step_times([one])).saturation_qps(
        Workload.of("run", "chat", [(256, 128, 1)], ""), ()
    )[0])  # fmt: skip
    points = LoadPoints((one,), np.array([0]), *(np.array([float(x)]) for x in (256, 128, rate, NAN, NAN, 0.03)))
    work = np.zeros(1), np.array([64.0]), np.array([64 * 320.0])
    assert fit_loads(points, prior).iteration_s(one, *work) < 0.9 * prior.iteration_s(one, *work)


def test_rows_become_runs() -> None:
    key = ("llama-2-7b", "BF16", "A100-SXM4-80GB", 1, "vllm", "1", "serving")
    rows: list[tuple[Any, ...]] = [
        (*key, "ok", 256.0, 128.0, 2.0, None, 0.1, 0.02),
        (*key, "ok", 256.0, 128.0, None, 8.0, None, 0.03),
        (*key, "ok", 256.0, 1.0, None, 8.0, 0.1, None),
        (*key, "failed", 256.0, 128.0, 9.0, None, 0.1, 0.02),
    ]
    table = pa.Table.from_pylist([dict(zip(LOAD_COLUMNS, row, strict=True)) for row in rows])
    points = LoadPoints.of_table(table, "here")
    np.testing.assert_equal(points.rate_qps, [2, NAN])
    np.testing.assert_equal(points.concurrency, [NAN, 8])
    np.testing.assert_equal(points.ttft_s, [0.1, NAN])
    assert points.tpot_s.tolist() == [0.02, 0.03]
    with pytest.raises(StoreError, match="here has no serving row"):
        LoadPoints.of_table(table.slice(2), "here")


def test_runs_need_one_load_and_a_tpot(prior: StepSurrogate) -> None:
    points = loads(prior, [(NAN, 16.0)])
    with pytest.raises(InputError, match="either a request rate or a concurrency"):
        dataclasses.replace(points, rate_qps=np.ones(len(points.index)))
    with pytest.raises(InputError, match="latencies above 0 s"):
        dataclasses.replace(points, tpot_s=0 * points.tpot_s)
