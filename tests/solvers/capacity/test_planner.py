"""Plans on the shipped pack: what must hold between asks, and what infeasible asks answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.core import Model, Plan, Quantization, Slo, StoreError, Workload
from qplan.core.errors import InputError
from qplan.core.gpu import parse_inventory
from qplan.profiles.packs import Card, find_pack, read_pack, write_pack
from qplan.profiles.store import ProfileStore
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.planner import plan_capacity

MODEL = Model.named("llama-2-13b")


def ask(rate: float = 20.0, slo: str = "ttft=1s,tpot=60ms", gpus: str | None = None, **options: object) -> CapacityAsk:
    return CapacityAsk.of(
        rate,
        Slo.parse_all([slo]),
        inventory=parse_inventory((gpus,)) if gpus else None,
        **{"models": [MODEL], **options},  # type: ignore[arg-type]
    )


def planned(question: CapacityAsk) -> Plan:
    return plan_capacity(question).plan


def objective(question: CapacityAsk) -> float:
    plan = planned(question)
    if plan.status == "infeasible":
        return float("inf")
    assert plan.status == "optimal"
    assert plan.objective is not None
    return plan.objective


def test_every_group_meets_the_slos_at_its_load() -> None:
    plan = planned(ask(90, gpus="a100=16,l40s=8,h100"))
    assert sum(group.share for group in plan.replicas) == pytest.approx(1)
    for group in plan.replicas:
        assert group.load_qps <= group.saturation_qps * (1 + 1e-6)
        assert group.load_qps * group.count == pytest.approx(90 * group.share)
        for latency in group.predicted:
            assert latency.slo is None or latency.value <= latency.slo * (1 + 1e-3)
    assert plan.gpus.get("A100-SXM4-80GB", 0) <= 16
    assert plan.gpus.get("L40S", 0) <= 8


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.floats(1, 300), st.floats(1.01, 4))
def test_more_requests_never_cost_less(rate: float, factor: float) -> None:
    assert objective(ask(rate * factor)) >= objective(ask(rate)) - 1e-6


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.floats(0.15, 1), st.floats(0.02, 0.1), st.floats(1.01, 3), st.sampled_from(["cost", "gpus"]))
def test_a_looser_slo_never_costs_more(ttft: float, tpot: float, factor: float, goal: str) -> None:
    tight = objective(ask(40, f"ttft={ttft}s,tpot={tpot}s", objective=goal))
    assert objective(ask(40, f"ttft={ttft * factor}s,tpot={tpot}s", objective=goal)) <= tight + 1e-6
    assert objective(ask(40, f"ttft={ttft}s,tpot={tpot * factor}s", objective=goal)) <= tight + 1e-6


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 16), st.integers(0, 16), st.integers(1, 8))
def test_a_larger_inventory_never_costs_more(a100: int, h100: int, more: int) -> None:
    few = objective(ask(60, gpus=f"a100={a100},h100={h100}"))
    assert objective(ask(60, gpus=f"a100={a100 + more},h100={h100}")) <= few + 1e-6
    assert objective(ask(60, gpus=f"a100={a100},h100={h100 + more}")) <= few + 1e-6


@pytest.mark.parametrize("rate", [1e-9, 1e-4])
def test_next_to_no_demand_still_takes_a_replica(rate: float) -> None:
    plan = planned(ask(rate))
    assert sum(group.count for group in plan.replicas) == 1


def test_a_spare_costs_and_the_fleet_survives_any_loss() -> None:
    without, with_spare = planned(ask(60)), planned(ask(60, spare=1))
    assert (with_spare.cost_per_hour or 0) > (without.cost_per_hour or 0)
    for lost in with_spare.replicas:
        left = sum((g.count - (g is lost)) * g.saturation_qps for g in with_spare.replicas)
        assert left >= 60 * (1 - 1e-6)


def test_a_larger_model_quantized_may_replace_a_smaller_one() -> None:
    small, large = Model.named("llama-2-13b"), Model.named("llama-2-70b")
    plan = planned(ask(5, models=[small, large], objective="gpus", quality_floor=1.05))
    assert {group.model for group in plan.replicas} == {"llama-2-70b"}
    assert plan.quality is not None
    assert plan.quality.value > 1.05
    alone = planned(ask(5, models=[small], quality_floor=1.05))
    assert alone.constraint == "quality"


def test_only_what_is_allowed_serves() -> None:
    plan = planned(ask(20, gpus="h100", quantizations=[Quantization.parse("FP16")]))
    assert {group.quantization for group in plan.replicas} == {"BF16"}
    assert {group.gpu for group in plan.replicas} == {"H100-SXM5-80GB"}


def test_the_objective_is_what_is_minimised() -> None:
    cheap, few = planned(ask(120, objective="cost")), planned(ask(120, objective="gpus"))
    assert cheap.cost_per_hour == pytest.approx(cheap.objective)
    assert sum(few.gpus.values()) == few.objective
    assert (cheap.cost_per_hour or 0) <= (few.cost_per_hour or 0)
    assert sum(few.gpus.values()) <= sum(cheap.gpus.values())


def test_a_price_of_a_smaller_machine_is_warned_of() -> None:
    large = Model.named("llama-2-70b")
    plan = planned(ask(1, "ttft=3s,tpot=150ms", gpus="l40s", models=[large]))
    assert {group.tp for group in plan.replicas} != {1}
    assert any("a machine with 1 of them" in warning for warning in plan.warnings)
    own = planned(ask(1, "ttft=3s,tpot=150ms", gpus="l40s", models=[large], prices={"L40S": 2.0}))
    assert not any("a machine with" in warning for warning in own.warnings)


def test_a_price_moves_the_plan() -> None:
    plan = planned(ask(20, prices={"H200-SXM": 0.01}))
    assert set(plan.gpus) == {"H200-SXM"}


@pytest.mark.parametrize(
    ("question", "constraint", "words"),
    [
        (ask(1, "ttft=1ms"), "slo", "even without load"),
        (ask(1, "p50:itl=1us"), "slo", "even without load"),
        (ask(4000, gpus="h100=8"), "inventory", "cannot carry 4000"),
        (ask(1, gpus="l40s=1", models=[Model.named("llama-2-70b")], quality_floor=1.0), "quality", "quality floor"),
        (ask(1, quality_floor=1.2), "quality", "quality floor of 120.0%"),
        (ask(1, workload=Workload.fixed("isl=5000,osl=100")), "memory", "longest request"),
        (ask(1, gpus="h100=0"), "inventory", "no single replica"),
    ],
)
def test_an_infeasible_ask_says_what_binds(question: CapacityAsk, constraint: str, words: str) -> None:
    plan = planned(question)
    assert plan.status == "infeasible"
    assert plan.constraint == constraint
    assert words in (plan.reason or "")
    assert plan.nearest


def test_the_nearest_inventories_suffice() -> None:
    plan = planned(ask(500, gpus="h100=8,a100=8"))
    offers = [change.removeprefix("--gpus ") for change in plan.nearest if change.startswith("--gpus ")]
    assert len(offers) == 2
    for offer in offers:
        assert objective(ask(500, gpus=offer)) < float("inf")


def test_explanations_price_demand_and_name_runner_ups() -> None:
    question = ask(100, gpus="h100=4,a100=64")
    answer = plan_capacity(question, why=True)
    why = answer.explanation
    assert why is not None
    cost = answer.plan.objective or 0
    assert 0 <= why.whole_replicas_cost < cost
    assert why.marginal_cost_per_qps * 100 <= cost * 1.5
    assert why.runner_ups
    assert all(other.objective >= cost - 1e-6 for other in why.runner_ups)
    assert [other.objective for other in why.runner_ups] == sorted(other.objective for other in why.runner_ups)
    assert sum(why.rejected.values()) > 0


def test_a_store_and_a_users_pack_plan_as_the_shipped_pack_does(tmp_path: Path) -> None:
    shipped = read_pack("trtllm-composed", models=["llama-2-13b"])
    rows = shipped.table.filter(np.array(shipped.table["gpu"].to_pylist()) == "H100-SXM5-80GB")
    url = f"sqlite:///{tmp_path / 'profiles.db'}"
    with ProfileStore(url) as store:
        store.add(rows, source="test")
    mine = tmp_path / "mine.parquet"
    write_pack(mine, Card("mine", "mine", "kernel-composed", "none", "test", "2026-01-01"), rows)
    costs = [objective(ask(60, gpus="h100", profiles=source)) for source in ("trtllm-composed", url, str(mine))]
    assert costs[0] == costs[1] == costs[2]
    assert any("is unknown" in warning for warning in planned(ask(60, gpus="h100", profiles=url)).warnings)


def test_profiles_without_step_times_are_an_input_error(tmp_path: Path) -> None:
    with ProfileStore(f"sqlite:///{tmp_path / 'empty.db'}") as store:
        store.add(read_pack("trtllm-composed", models=["llama-2-13b"]).table.slice(0, 0), source="test")
    with pytest.raises((InputError, StoreError)):
        planned(ask(profiles=f"sqlite:///{tmp_path / 'empty.db'}"))


def test_the_card_of_the_shipped_pack_states_its_known_error() -> None:
    card = json.loads(find_pack("trtllm-composed").with_suffix(".json").read_text())
    assert card["known_error"]["coverage"] == 0.9
    assert set(card["known_error"]["measured_over_predicted"]) == {"ttft", "tpot"}
