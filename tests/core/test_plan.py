from __future__ import annotations

import json

import pytest

from qplan.core.errors import InputError
from qplan.core.plan import Assumption, LatencyPrediction, Plan, Prediction, ReplicaGroup


def plan() -> Plan:
    latencies = (
        LatencyPrediction("ttft", 50.0, 0.1, 0.05, 0.2, None),
        LatencyPrediction("ttft", 99.0, 0.4, 0.2, 0.8, 1.0),
        LatencyPrediction("tpot", 90.0, 0.02, 0.01, 0.03, None),
    )
    quality = Prediction(0.99, 0.98, 1.0, None, "published")
    group = ReplicaGroup(
        "m W4A16 g x2", "m", "W4A16", "g", 2, "trtllm", "1.0", 3, 4.0, 1.0, 5.0, 8.0, quality, latencies
    )
    return Plan(
        status="optimal",
        objective_name="cost",
        replicas=(group,),
        gpus={"g": 6},
        cost_per_hour=12.0,
        power_w=None,
        power_note="no model",
        quality=quality,
        predicted=latencies,
        headroom=group.headroom,
        objective=12.0,
        bound=12.0,
        gap=0.0,
        solver="highs",
        solve_s=0.01,
        provenance=("measured: here",),
        assumptions=(Assumption("model", "m", "--model"),),
    )


def test_a_plan_comes_back_from_json() -> None:
    document = json.loads(json.dumps(plan().to_json()))
    assert Plan.from_json(document) == plan()


def test_percentiles_of_one_metric_are_told_apart() -> None:
    predicted = plan().to_json()["predicted"]
    assert set(predicted) == {"p50:ttft", "p99:ttft", "tpot"}
    assert predicted["p99:ttft"]["slo"] == 1.0


def test_headroom_is_what_is_left_of_the_saturation_rate() -> None:
    assert plan().replicas[0].headroom == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"replicas": None}, {"unknown": 1}, {"quality": {"value": 1}}]
)
def test_what_is_no_plan_of_this_version_is_an_input_error(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="plan: "):
        Plan.from_json({**plan().to_json(), **change})
