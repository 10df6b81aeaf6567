"""From a demand to a plan: what comes out agrees with itself and with the demand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qplan.core.demand import Demand, Pool
from qplan.core.errors import InputError
from qplan.core.fleetplan import FleetPlan
from qplan.core.slo import Slo
from qplan.models.sharing import SharingModel
from qplan.solvers.fleet.asking import Asked, ask_fleet
from qplan.solvers.fleet.planning import FleetAnswer, front, plan_fleet


@pytest.fixture(scope="module")
def asked(small_demand: Demand) -> Asked:
    return ask_fleet(small_demand)


def test_a_plan_is_proven_and_carries_the_demand(small_answer: FleetAnswer, small_demand: Demand) -> None:
    plan = small_answer.plan
    assert plan.status == "optimal"
    assert plan.totals is not None
    assert plan.bound is not None
    assert plan.objective is not None
    assert plan.bound <= plan.objective * (1 + 1e-9)
    for period, rate in zip(plan.periods, small_demand.total_qps, strict=True):
        assert sum(group.count * group.load_qps for group in period.groups) == pytest.approx(rate)
        for bucket in range(len(plan.buckets)):
            assert sum(group.shares[bucket] for group in period.groups) == pytest.approx(1)
        assert all(0 <= group.utilisation <= 1 + 1e-6 for group in period.groups)
        for pool in small_demand.pools:
            assert period.gpus.get(pool.name, 0) <= pool.count


def test_totals_are_the_sums_of_the_periods(small_answer: FleetAnswer, small_demand: Demand) -> None:
    plan = small_answer.plan
    assert plan.totals is not None
    gpus = sum(sum(period.gpus.values()) * period.hours for period in plan.periods)
    starts = sum(
        group.starts * plan.option(group.option).tp * small_demand.start_s / 3600
        for period in plan.periods
        for group in period.groups
    )
    assert plan.totals.gpu_hours == pytest.approx(gpus + starts)
    burned = sum((period.power_w or 0) * period.hours / 1000 for period in plan.periods)
    assert plan.totals.energy_kwh == pytest.approx(burned, rel=0.01)  # and that of starting
    assert plan.totals.energy_kwh is not None
    assert plan.totals.carbon_kg == pytest.approx(0.4 * plan.totals.energy_kwh)
    assert plan.totals.cost == pytest.approx(
        sum(group.cost for period in plan.periods for group in period.groups), rel=0.01
    )


def test_predictions_keep_the_slos_that_the_plan_was_made_for(small_answer: FleetAnswer) -> None:
    assert small_answer.plan.totals is not None
    assert small_answer.plan.totals.attainment["chat"] >= 0.9 - 1e-6
    for period in small_answer.plan.periods:
        for group in period.groups:
            for latency in group.latency["chat"].predicted:
                assert latency.slo is None or latency.value <= latency.slo * (1 + 1e-6)


def test_a_plan_reads_back_from_json(small_answer: FleetAnswer) -> None:
    document = json.loads(json.dumps(small_answer.plan.to_json()))
    assert FleetPlan.from_json(document) == small_answer.plan
    with pytest.raises(InputError, match="'plan' of schema_version 1"):
        FleetPlan.from_json({**document, "kind": "plan"})
    with pytest.raises(InputError, match="not a fleet-plan"):
        FleetPlan.from_json({key: value for key, value in document.items() if key != "periods"})


def test_a_class_that_is_not_cut_is_planned_at_its_own_saturation_rate(asked: Asked) -> None:
    one = asked.demand.classes[0]
    own = SharingModel.of(asked.deployments, asked.steps).saturation_qps(one.workload, one.slos)
    if len(asked.buckets) == 1:
        assert asked.problem.capacity_qps[0] == pytest.approx(own)
    assert (asked.saturation_qps(0) <= own * (1 + 1e-6)).all()


def test_rates_of_buckets_add_up_to_the_demand(asked: Asked) -> None:
    assert asked.problem.rate_qps.sum(axis=0) == pytest.approx(asked.demand.total_qps)
    assert asked.buckets.weight.sum() == pytest.approx(1)


def test_quality_and_quantizations_decide_who_may_serve(asked: Asked) -> None:
    names = {str(one.quantization) for one in asked.deployments}
    assert names == {"BF16", "W8A8KV8-FP"}
    assert all(grade is not None and grade.value >= 0.97 for grade in asked.grades[0])


def test_spot_gpus_carry_less(small_demand: Demand, asked: Asked) -> None:
    spot = replace(small_demand.pools[1], name="spot", availability=0.5)
    other = ask_fleet(replace(small_demand, pools=(small_demand.pools[0], spot)))
    on_spot = other.problem.pool == 1
    on_demand = asked.problem.pool == 1
    assert other.problem.capacity_qps[:, on_spot] == pytest.approx(0.5 * asked.problem.capacity_qps[:, on_demand])
    assert all("[spot]" in name for name, here in zip(other.problem.options, on_spot, strict=True) if here)


def test_confidence_takes_capacity_off_and_never_adds(small_demand: Demand, asked: Asked) -> None:
    surer = ask_fleet(small_demand, confidence=0.8)
    assert all(
        tight.threshold_s < slo.threshold_s
        for tight, slo in zip(surer.limits[0], small_demand.classes[0].slos, strict=True)
    )
    known = dict(zip(asked.problem.options, asked.saturation_qps(0).tolist(), strict=True))
    for name, rate in zip(surer.problem.options, surer.saturation_qps(0).tolist(), strict=True):
        assert rate <= known[name] * (1 + 1e-9)


def test_more_demand_is_never_cheaper(asked: Asked, small_answer: FleetAnswer) -> None:
    lighter = plan_fleet(asked.demand.scaled(0.5)).plan
    assert lighter.totals is not None
    assert small_answer.plan.totals is not None
    assert lighter.totals.cost <= small_answer.plan.totals.cost * (1 + 1e-4)


def test_too_few_gpus_name_how_many_more(small_demand: Demand) -> None:
    few = (replace(small_demand.pools[0], count=1.0), replace(small_demand.pools[1], count=1.0))
    plan = plan_fleet(replace(small_demand.scaled(5), pools=few)).plan
    assert plan.status == "infeasible"
    assert plan.constraint == "inventory"
    assert plan.reason is not None
    assert "1 x H100-SXM5-80GB" in plan.reason
    assert any("L40S: count" in change for change in plan.nearest)


def test_slos_that_nothing_meets_name_the_class_and_the_nearest(small_demand: Demand) -> None:
    one = replace(small_demand.classes[0], slos=(Slo("ttft", 1e-3, 90.0),))
    plan = plan_fleet(replace(small_demand, classes=(one,))).plan
    assert plan.constraint == "slo"
    assert plan.reason is not None
    assert plan.reason.startswith("chat: no deployment meets")
    assert any(change.startswith("chat: slo p90:ttft=") for change in plan.nearest)
    assert FleetPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_names_that_the_profiles_do_not_have_are_refused(small_demand: Demand) -> None:
    from qplan.core.gpu import Gpu
    from qplan.core.model import Model

    pool = Pool("t4", Gpu.named("t4"), 4.0, (1.0,) * 3)
    with pytest.raises(InputError, match="pool t4: trtllm-composed has no profile of these models on T4; it has A100"):
        ask_fleet(replace(small_demand, pools=(pool,)))
    one = replace(small_demand.classes[0], models=(Model.named("qwen2.5-7b"),))
    with pytest.raises(InputError, match=r"no step times of"):
        ask_fleet(replace(small_demand, classes=(one,)))


def test_a_front_trades_cost_for_energy(small_demand: Demand) -> None:
    flat = replace(
        small_demand.scaled(0.5),
        classes=(replace(small_demand.classes[0], rate_qps=(30.0,)),),
        hours=(1.0,),
        pools=tuple(replace(pool, price_per_gpu_hour=pool.price_per_gpu_hour[:1]) for pool in small_demand.pools),
        energy_price=(0.0,),
        carbon=(0.0,),
    )
    plans = front(flat, ["cost", "energy"], time_limit_s=20)
    assert plans
    costs = np.array([plan.totals.cost for plan in plans if plan.totals])
    assert (np.diff(costs) >= -1e-9).all()
    burned = np.array([plan.totals.energy_kwh for plan in plans if plan.totals])
    assert (np.diff(burned) <= 1e-9).all()  # what costs more burns less, or it would not be there
    with pytest.raises(InputError, match="carbon needs the g CO2e/kWh"):
        front(flat, ["cost", "carbon"])
