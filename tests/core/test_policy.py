"""Routing policies as data: they come back as they went, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.core.plan import Assumption
from qplan.core.policy import Policy, PolicyBucket, PolicyClass, PolicyGroup, PolicyLevel


def made_up() -> Policy:
    group = PolicyGroup(
        name="h100",
        model="llama-3.1-8b",
        quantization="BF16",
        gpu="H100-SXM5-80GB",
        tp=1,
        engine="trtllm",
        engine_version="1.0",
        count=2,
        kv_tokens=4e5,
        max_sequences=256,
        idle_w=130.0,
        asleep_w=None,
        wake_s=30.0,
        quality={"chat": 1.0},
        prefill_s_per_token=1e-4,
        prefill_j_per_token=0.02,
        in_flight=(1.0, 8.0),
        step_s=(0.01, 0.012),
        tpot_s=(0.01, 0.02),
        full_tpot_s=0.05,
        energy_j=(50.0,),
        energy_among_j=((500.0, 90.0),),
    )
    return Policy(
        name="small",
        margin=1.5,
        miss_j=1000.0,
        hold_s=60.0,
        headroom=1.3,
        classes=(PolicyClass("chat", ("p90:ttft=1s", "p50:ttft=200ms", "p90:tpot=50ms"), 0.99),),
        buckets=(PolicyBucket("chat", 0.0, None, 1.0, 300.0, 100.0, 80.0, 250.0),),
        groups=(group, replace(group, name="other", count=1)),
        levels=(
            PolicyLevel(2.0, (1, 0), ((1.0, 0.0),), None, None, {"chat": 0.0}, (0.0, 0.0), (0, 1), (1, 0)),
            PolicyLevel(4.0, (2, 1), ((0.5, 0.5),), 900.0, 890.0, {"chat": 3.0}, (5.0, 0.0), (0, 1), (2, 1)),
        ),
        provenance=("made up",),
        assumptions=(Assumption("wake time", "30 s", "start"),),
    )


def test_it_comes_back() -> None:
    policy = made_up()
    assert Policy.from_json(json.loads(json.dumps(policy.to_json(), allow_nan=False))) == policy
    assert policy.group_of == (0, 0, 1)
    assert policy.class_named("chat").threshold_s("ttft") == pytest.approx(0.2)
    assert policy.class_named("chat").threshold_s("e2e") == float("inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=9), "schema_version 9"),
        (lambda d: d.update(kind="plan"), "'plan'"),
        (lambda d: d.pop("groups"), "groups"),
        (lambda d: d.update(levels=[]), "no class, bucket, group or level"),
        (lambda d: d["levels"].reverse(), "do not rise"),
        (lambda d: d["levels"][0]["awake"].pop(), "other groups"),
        (lambda d: d["levels"][1]["serving"].pop(), "other groups"),
        (lambda d: d["groups"][0].update(energy_j=[1.0, 2.0]), "energy_j of 2 buckets"),
        (lambda d: d["groups"][0].update(step_s=[1.0]), "at other loads"),
        (lambda d: d["groups"][0].update(count=0), "0 replicas"),
        (lambda d: d["groups"][0].update(colour="red"), "colour"),
        (lambda d: d["buckets"][0].update(request_class="code"), "unknown class 'code'"),
        (lambda d: d["classes"][0].update(slos=["ttft<1s"]), "ttft<1s"),
        (lambda d: d.update(classes=3), "not a routing-policy"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    data = json.loads(json.dumps(made_up().to_json()))
    change(data)
    with pytest.raises(InputError, match=said):
        Policy.from_json(data)
