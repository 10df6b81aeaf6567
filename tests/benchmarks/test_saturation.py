"""What the saturation search promises: its interval holds the truth, for fewer probe-seconds than plain bisection.

Plain bisection brackets and halves as the search does, but every probe has the same duration, and the share of misses
in it decides. The duration is what buys accuracy, so it is run at several. The time it needs for the median error of
the search (or for the smallest that it reached, if larger) follows from a line through log time against log error.
Run with ``pytest -s`` to see the figures.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from qplan.core.slo import Slo
from qplan.measure.saturation.objective import Objective
from qplan.measure.saturation.search import find_saturation
from tests.measure.saturation.virtual_server import VirtualServer, saturation_qps, waits_s

SEARCHES = 100
PLAIN_REQUESTS = (250, 1_000, 4_000, 16_000)
CASES = {
    # slots, service time, TTFT threshold in excess of an empty server's, percentile
    "tight, far below capacity": (1, 0.1, 0.05, 90.0),
    "p90 of one service time": (4, 0.5, 0.5, 90.0),
    "p90 of ten service times": (1, 0.1, 1.0, 90.0),
    "p95 on 32 slots": (32, 2.0, 0.2, 95.0),
    "p90 on 16 slots": (16, 1.0, 0.5, 90.0),
    "p99": (4, 0.5, 1.0, 99.0),
}


def plain_bisection(
    server: VirtualServer, allowed: float, start_qps: float, duration_s: float, seed: int
) -> tuple[float, float]:
    """Return the rate found, to 1 %, and the probe-seconds spent: probes of one duration, each from an idle server."""
    spent_s = 0.0

    def passes(rate: float) -> bool:
        nonlocal spent_s
        requests = math.ceil(rate * duration_s)
        arrivals_s = np.cumsum(np.random.default_rng([seed, 0]).exponential(1.0, requests)) / rate
        waited_s = waits_s(arrivals_s, server.slots, server.service_s)
        spent_s += float(arrivals_s[-1] + waited_s[-1] + server.service_s)
        missed = waited_s[requests // 10 :] > server.thresholds_s[0]
        return float(missed.mean()) <= allowed

    low = high = start_qps
    if passes(start_qps):
        while passes(2 * low):
            low *= 2
        high = 2 * low
    else:
        while not passes(high / 2):
            high /= 2
        low = high / 2
    while high / low > 1.02:
        rate = math.sqrt(low * high)
        low, high = (rate, high) if passes(rate) else (low, rate)
    return math.sqrt(low * high), spent_s


@pytest.mark.parametrize("case", CASES)
def test_the_interval_holds_the_truth_for_less_time_than_plain_bisection(case: str) -> None:
    slots, service_s, wait_s, percentile = CASES[case]
    allowed = 1 - percentile / 100
    truth = saturation_qps(slots, service_s, wait_s, allowed)
    objective = Objective.each([Slo("ttft", wait_s, percentile)])
    held, errors, spent_s = 0, [], []
    for seed in range(SEARCHES):
        server = VirtualServer(slots, service_s, (wait_s,), seed)
        found = find_saturation(server, objective, start_qps=1 / service_s, precision=0.08)
        assert found.qps is not None
        held += (found.low_qps or 0.0) <= truth <= (found.high_qps or math.inf)
        errors.append(abs(found.qps / truth - 1))
        spent_s.append(found.probe_s)
    plain = np.array(
        [
            [
                plain_bisection(
                    VirtualServer(slots, service_s, (wait_s,), seed), allowed, 1 / service_s, requests / truth, seed
                )
                for seed in range(SEARCHES)
            ]
            for requests in PLAIN_REQUESTS
        ]
    )
    plain_errors = np.median(np.abs(plain[:, :, 0] / truth - 1), axis=1)
    slope, offset = np.polyfit(np.log(plain_errors), np.log(plain[:, :, 1].mean(axis=1)), 1)
    error, mean_s = float(np.median(errors)), float(np.mean(spent_s))
    matched = max(error, float(plain_errors.min()))
    plain_s = math.exp(offset + slope * math.log(matched))
    print(  # noqa: T201
        f"\n{case}: truth in the interval {held} of {SEARCHES}, median error {error:.2%}, "
        f"{mean_s:.0f} probe-seconds; plain bisection for {matched:.2%} {plain_s:.0f}, ratio {mean_s / plain_s:.2f}; "
        f"its errors by duration {', '.join(f'{e:.2%}' for e in plain_errors)}"
    )
    assert held >= 95
    assert error < 0.03
    assert mean_s < plain_s
