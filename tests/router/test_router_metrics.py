"""Prometheus' text format, and adding up processes."""

from __future__ import annotations

import json

from qplan.measure.engines.metrics_text import parse_prometheus
from qplan.router.metrics import IN_FLIGHT, REQUESTS, TPOT, TTFT, Metrics, merge, render


def filled() -> Metrics:
    metrics = Metrics()
    metrics.add(REQUESTS, outcome="ok")
    metrics.add(REQUESTS, 2, outcome="ok")
    metrics.set(IN_FLIGHT, 3, replica='a"\\\n')
    for seconds in (0.0005, 0.2495, 4.0):
        metrics.observe(TTFT, seconds, replica="a")
    return metrics


def test_the_text() -> None:
    text = render(filled().samples())
    assert "# TYPE qplan_router_requests_total counter\n" in text
    assert 'qplan_router_requests_total{outcome="ok"} 3\n' in text
    assert 'qplan_router_in_flight{replica="a\\"\\\\\\n"} 3\n' in text
    assert 'qplan_router_ttft_seconds_bucket{replica="a",le="0.001"} 1\n' in text
    assert 'qplan_router_ttft_seconds_bucket{replica="a",le="0.5"} 2\n' in text
    assert 'qplan_router_ttft_seconds_bucket{replica="a",le="+Inf"} 3\n' in text
    assert 'qplan_router_ttft_seconds_count{replica="a"} 3\n' in text
    assert parse_prometheus(text)["qplan_router_ttft_seconds_sum"] == [4.25]


def test_processes_add_up_also_from_json() -> None:
    other = json.loads(json.dumps(filled().samples()))
    total = render(merge([filled().samples(), other]))
    assert 'qplan_router_requests_total{outcome="ok"} 6\n' in total
    assert 'qplan_router_ttft_seconds_count{replica="a"} 6\n' in total


def test_a_replica_that_left_keeps_its_counters_and_loses_its_gauges() -> None:
    metrics = filled()
    metrics.set(IN_FLIGHT, 1, replica="a")
    metrics.observe(TPOT, 0.1, replica="a")
    metrics.forget(replica="a")
    text = render(metrics.samples())
    assert 'in_flight{replica="a"}' not in text
    assert 'tpot_seconds_count{replica="a"} 1' in text
