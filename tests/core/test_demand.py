"""Demands: what they refuse, and how they scale."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qplan.core.demand import DIURNAL, Demand, Pool, RequestClass
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.slo import Slo
from qplan.core.workload import Workload


@pytest.fixture
def demand() -> Demand:
    def of(name: str, rates: tuple[float, ...]) -> RequestClass:
        workload = Workload.fixed("isl=100,osl=10")
        return RequestClass(name, workload, (Slo("ttft", 1.0, 90.0),), (Model.named("llama-3.1-8b"),), 0.9, None, rates)

    return Demand(
        name="two",
        classes=(of("a", (1.0, 3.0)), of("b", (2.0, 1.0))),
        hours=(6.0, 18.0),
        pools=(Pool("h100", Gpu.named("h100"), 8.0, (3.0, 3.0)),),
        energy_price=(0.0, 0.0),
        carbon=(0.0, 0.0),
        power_cap_w=math.inf,
        spare=0,
        start_s=0.0,
        start_cost=0.0,
        objective=(("cost", 1.0),),
        profiles="trtllm-composed",
    )


def test_the_peak_is_that_of_all_classes_together(demand: Demand) -> None:
    assert demand.total_qps == (3.0, 4.0)
    assert demand.peak_qps == 4.0
    assert demand.horizon_hours == 24.0
    assert demand.scaled(2.5).peak_qps == 10.0
    assert demand.scaled(2.5).classes[1].rate_qps == (5.0, 2.5)


def test_a_day_has_one_peak() -> None:
    assert len(DIURNAL) == 24
    assert max(DIURNAL) == 1.0


def test_figures_must_be_one_a_period(demand: Demand) -> None:
    with pytest.raises(InputError, match="the energy price has 1 figures; expected 2, one a period"):
        replace(demand, energy_price=(0.1,))
    with pytest.raises(InputError, match="the carbon intensity holds a figure below 0"):
        replace(demand, carbon=(-1.0, 0.0))
    with pytest.raises(InputError, match="no request class"):
        replace(demand, classes=())


def test_measures_must_be_known(demand: Demand) -> None:
    with pytest.raises(InputError, match=r"unknown measure 'cots'.*did you mean 'cost'"):
        replace(demand, objective=(("cots", 1.0),))
    with pytest.raises(InputError, match="unknown measure 'watts'"):
        replace(demand, at_most={"watts": 1.0})
    with pytest.raises(InputError, match="no measure to minimise"):
        replace(demand, objective=(("cost", 0.0),))
