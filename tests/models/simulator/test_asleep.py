"""What replicas take while they are asleep, and that two drawn at random share the load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import Simulation, simulate
from qplan.models.simulator.traffic import Traffic

Make = Callable[..., Replica]


def powered(replica: Replica) -> Replica:
    return replace(replica, power_w=np.full(replica.times.time_s.shape, 300.0), idle_w=100.0)


def test_a_sleeper_takes_its_watts_outside_of_its_windows(made_up: Make) -> None:
    awake = powered(made_up())
    asleep = replace(awake, up_s=((0.0, 40.0), (70.0, 90.0)), asleep_w=10.0)
    traffic = Traffic(np.array([1.0, 39.9, 75.0]), np.array([20, 30, 10]), np.array([5, 40, 5]))
    runs = {}
    for name, one in (("awake", awake), ("asleep", asleep)):
        simulation = Simulation([one])
        simulation.offer(traffic)
        simulation.finish()
        (runs[name],) = simulation.use(100.0).replicas
    assert runs["asleep"].busy_s == pytest.approx(runs["awake"].busy_s)
    assert runs["awake"].energy_j == pytest.approx(300 * runs["awake"].busy_s + 100 * (100 - runs["awake"].busy_s))
    saved_j = runs["awake"].energy_j - runs["asleep"].energy_j  # type: ignore[operator]
    # Forty seconds outside of the windows, less those in which the second request is still served.
    assert 90 * 30 <= saved_j <= 90 * 40
    series = runs["asleep"]
    assert series.power_w is not None
    ends = np.minimum(series.bin_s * np.arange(1, len(series.power_w) + 1), 100.0)
    widths = np.diff(np.concatenate([[0.0], ends]))
    assert series.power_w @ widths == pytest.approx(series.energy_j, rel=1e-6)


def test_the_less_loaded_of_two_gets_a_request(made_up: Make) -> None:
    count = 4000
    traffic = Traffic(np.linspace(0.0, 40.0, count), np.full(count, 60), np.full(count, 20))
    fleet = [made_up() for _ in range(4)]
    waits = {
        rule: float(np.nanpercentile(simulate(traffic, fleet, rule, seed=3).ttft_s, 95))
        for rule in (Dispatch.RANDOM, Dispatch.POWER_OF_TWO, Dispatch.LEAST_OUTSTANDING)
    }
    assert waits[Dispatch.LEAST_OUTSTANDING] <= waits[Dispatch.POWER_OF_TWO] < waits[Dispatch.RANDOM]
