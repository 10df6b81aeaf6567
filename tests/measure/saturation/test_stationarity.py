"""A growing queue is seen early; a busy one is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.measure.load.requests import Floats
from qplan.measure.saturation.stationarity import queue_grows
from tests.measure.saturation.virtual_server import waits_s


def a_run(load: float, requests: int, seed: int, slots: int = 8, service_s: float = 1.0) -> tuple[Floats, Floats]:
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(service_s / slots / load, requests))
    return arrivals_s, arrivals_s + waits_s(arrivals_s, slots, service_s) + service_s


@pytest.mark.parametrize(("load", "requests"), [(2.5, 300), (2.0, 250), (1.3, 1_500)])
def test_overload_is_seen_within_a_few_requests(load: float, requests: int) -> None:
    for seed in range(20):
        arrivals_s, ended_s = a_run(load, requests, seed)
        assert queue_grows(arrivals_s, ended_s, float(arrivals_s[-1]))


@pytest.mark.parametrize("load", [0.5, 0.95, 1.0])
def test_a_busy_queue_is_not_called_growing_however_often_it_is_asked(load: float) -> None:
    called = 0
    for seed in range(50):
        arrivals_s, ended_s = a_run(load, 4_000, seed)
        looks = np.geomspace(5, arrivals_s[-1], 60)
        called += any(queue_grows(arrivals_s, ended_s, float(now_s)) for now_s in looks)
    assert called <= 2


def test_filling_a_server_with_long_requests_is_not_growth() -> None:
    arrivals_s = np.arange(0, 60, 0.05)
    ended_s = arrivals_s + 20.0  # 400 in flight before the first is over
    assert not any(queue_grows(arrivals_s, ended_s, float(now_s)) for now_s in np.arange(1.0, 60.0, 0.5))
