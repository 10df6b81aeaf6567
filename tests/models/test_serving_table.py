"""The table against the model that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core import Deployment, Gpu, Model, Quantization, Workload
from qplan.core.errors import InputError
from qplan.models.power.energy import energy
from qplan.models.serving_table import QUANTITIES, TOLERANCE, ServingTable
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats, Ints, StepTimes
from tests.conftest import steps_of

BOUND = 0.005
MIXED = Workload.of("mixed", "chat", [(100, 50, 0.3), (400, 200, 0.5), (1500, 300, 0.2)], "made up")


@pytest.fixture(scope="module")
def pair() -> list[Deployment]:
    kinds = (("BF16", "a100", 1), ("W4A16", "h100", 2))
    return [Deployment(Model.named("llama-2-13b"), Quantization.parse(q), Gpu.named(g), tp) for q, g, tp in kinds]


@pytest.fixture(scope="module")
def table(pair: list[Deployment]) -> ServingTable:
    return ServingTable.of(pair, steps_of(pair), MIXED)


def exact(deployments: list[Deployment], steps: StepTimes, index: Ints, rate: Floats) -> Floats:
    chosen, taken = [deployments[one] for one in index], steps.take(index)
    loaded = SharingModel.of(chosen, taken).at(MIXED, rate)
    columns = [loaded.percentile(name[:4], float(name[6:])) for name in QUANTITIES if name != "power_w"]
    return np.column_stack([*columns, energy(chosen, taken, MIXED, rate, loaded).power_w])


def test_it_is_within_the_bound_at_loads_it_was_not_made_of(pair: list[Deployment], table: ServingTable) -> None:
    draw = np.random.default_rng(0)
    index = draw.integers(0, 2, 1500)
    light = np.exp(draw.uniform(np.log(1e-7), 0, 1500))  # shares of the stable rate, down to next to no load
    share = np.where(draw.random(1500) < 0.5, light, 1 - np.exp(draw.uniform(np.log(1e-4), 0, 1500)))
    rate = np.minimum(share, 0.9999) * table.stable_qps[index]
    off = np.abs(table.at(index, rate) / exact(pair, steps_of(pair), index, rate) - 1)
    assert off.max() < BOUND
    assert (table.error <= TOLERANCE).all()


def test_a_coarser_table_is_smaller_and_says_that_it_is_further_off(
    pair: list[Deployment], table: ServingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qplan.models.serving_table.START_STEP", 2.0)
    coarse = ServingTable.of(pair, steps_of(pair), MIXED, tolerance=0.1)
    assert len(coarse.axis) < len(table.axis) / 4
    assert coarse.error.max() > TOLERANCE


def test_latencies_never_fall_with_load(table: ServingTable) -> None:
    rate = np.linspace(0, 1.1, 4000) * table.stable_qps[1]
    # The model's own tail of TPOT shrinks by some percent in the last percent before saturation, where every slot is
    # busy all the time; the table has it as it is.
    answers = table.at(np.ones(4000, dtype=np.intp), rate)[:, :3]
    assert (answers[1:] >= answers[:-1] * (1 - 1e-9)).all()


def test_no_load_is_answered_and_saturation_is_endless(pair: list[Deployment], table: ServingTable) -> None:
    index, idle = np.array([0, 1]), np.zeros(2)
    np.testing.assert_allclose(table.at(index, idle), exact(pair, steps_of(pair), index, idle), rtol=BOUND)
    for factor in (1.0, 3.0):
        beyond = table.at(index, factor * table.stable_qps)
        assert np.isinf(beyond[:, :4]).all()
        assert np.isnan(beyond[:, 4]).all()


def test_means_and_what_cannot_be_served(pair: list[Deployment]) -> None:
    steps = steps_of(pair)
    long = Workload.fixed("isl=100000,osl=10")
    assert np.isinf(ServingTable.of(pair, steps, long, ("tpot_mean",)).at(np.array([0]), np.array([1e-9]))).all()
    means = ServingTable.of(pair, steps, MIXED, ("e2e_mean", "tpot_mean"))
    rate = means.stable_qps * 0.6
    loaded = SharingModel.of(pair, steps).at(MIXED, rate)
    expected = np.column_stack([loaded.mean("e2e"), loaded.mean("tpot")])
    np.testing.assert_allclose(means.at(np.array([0, 1]), rate), expected, rtol=BOUND)


def test_bad_questions_are_refused_in_one_line(pair: list[Deployment], table: ServingTable) -> None:
    for name in ("itl_p90", "ttft", "watts"):
        with pytest.raises(InputError, match=f"no '{name}'; expected power_w, or ttft"):
            ServingTable.of(pair, steps_of(pair), MIXED, (name,))
    for rate in (-1.0, np.nan):
        with pytest.raises(InputError, match="below 0 requests/s"):
            table.at(np.array([0]), np.array([rate]))
    with pytest.raises(InputError, match="it has 0 to 1"):
        table.at(np.array([2]), np.array([1.0]))
