"""A demand with a trace, planned and replayed by the trace's own requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qplan.core.demand import Demand
from qplan.profiles.demands import demand_of
from qplan.profiles.yamlfile import read_yaml
from qplan.solvers.fleet.planning import plan_fleet
from qplan.solvers.fleet.verified import asked_fleet, verified_fleet

TRACED = """\
periods: 2
classes:
  - name: bursts
    trace: bursts.csv
    rate: 20qps
    {more}
    slo: [p90:ttft=1s]
    models: [llama-3.1-8b]
    quality: 90%
    quantizations: [BF16]
gpus: [l40s]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten minutes of 16 requests at once, every 8 s at first and every 4 s later."""
    times = np.repeat(np.concatenate([np.arange(0, 300, 8), np.arange(300, 600, 4)]), 16)
    random = np.random.default_rng(1)
    rows = [
        f"2024-05-01 00:{int(at) // 60:02d}:{int(at) % 60:02d},{given},{made}"
        for at, given, made in zip(
            times, random.integers(50, 3000, len(times)), random.integers(5, 100, len(times)), strict=True
        )
    ]
    (tmp_path / "bursts.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return tmp_path


def demand(folder: Path, more: str = "task: chat") -> Demand:
    return demand_of(read_yaml(TRACED.format(more=more), "traced.yaml"), folder, "traced")


def test_requests_of_a_trace_are_in_the_buckets_of_the_plan(folder: Path) -> None:
    answer = plan_fleet(demand(folder))
    assert answer.asked is not None
    assert answer.result is not None
    fleet = asked_fleet(answer.asked, answer.result)
    (trace,) = fleet.recorded
    assert trace is not None
    assert trace.by_period
    shares = np.bincount(trace.buckets, minlength=len(answer.asked.buckets)) / len(trace)
    np.testing.assert_allclose(shares, answer.asked.buckets.weight, atol=1e-9)
    assert trace.input_tokens.min() >= 50
    early, late = (trace.during(h, 2) for h in range(2))
    assert len(late) > 1.8 * len(early)
    assert answer.asked.demand.classes[0].rate_qps[1] == 20


def test_lengths_that_a_trace_does_not_give_are_those_of_the_class(folder: Path) -> None:
    answer = plan_fleet(demand(folder, "lengths: 'isl=700,osl=30'"))
    assert answer.asked is not None
    assert answer.result is not None
    (trace,) = asked_fleet(answer.asked, answer.result).recorded
    assert trace is not None
    assert set(trace.input_tokens) == {700}
    assert set(trace.output_tokens) == {30}


@pytest.mark.slow
def test_bursts_ask_for_more_than_random_arrivals(folder: Path) -> None:
    plain, verified = plan_fleet(demand(folder)), verified_fleet(demand(folder), requests=4000)
    assert plain.plan.totals is not None
    assert verified.plan.totals is not None
    told = verified.plan.verification
    assert told is not None
    assert told["recorded"] == ["bursts"]
    assert told["holds"]
    assert told["rounds"] > 1
    assert verified.plan.totals.cost > plain.plan.totals.cost
