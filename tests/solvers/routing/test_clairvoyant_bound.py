"""The clairvoyant bound: below every router, and not far below where there is no choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.simulation import Simulation
from qplan.models.simulator.traffic import Traffic
from qplan.solvers.backends import open_backend
from qplan.solvers.routing.bound import clairvoyant
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.replaying import ENERGY, POLICIES, SLEEPING, Whole, replay
from qplan.solvers.routing.sleeping import schedule
from qplan.solvers.routing.solving import solve_policy

Modelled = Callable[..., FleetModel]


@pytest.mark.parametrize("rate", [1.5, 8.0])
def test_no_policy_takes_less(rate: float, modelled: Modelled) -> None:
    model = modelled()
    policy = solve_policy(model, levels=4)
    drawn = model.lengths.draw(rate, 1200, seed=2)
    classes = model.lengths.request_class[drawn.buckets]
    whole = Whole(model.replicas, np.ones((2, len(model.replicas)), bool))
    found = replay(model, policy, drawn, classes, full=whole, backend=open_backend("highs"))
    assert [one.name for one in found.outcomes] == list(POLICIES)
    assert found.bound_j is not None
    for one in found.outcomes:
        assert one.energy_j >= found.bound_j
        assert one.mean_tpot_s <= 0.08  # for which the bound holds
    least = found.named("least-outstanding").energy_j
    assert found.named(ENERGY).energy_j < least
    assert found.named(SLEEPING).energy_j <= found.named(ENERGY).energy_j * (1 + 1e-9)
    closed = found.closed(ENERGY)
    assert closed is not None
    assert 0 < closed < 1
    assert found.closed("least-outstanding") == pytest.approx(0.0)


def test_without_a_choice_the_bound_is_what_a_full_batch_takes(modelled: Modelled) -> None:
    """Requests that come all at once to one replica run in full batches, which is all that the bound can hope for."""
    model = modelled()
    alone = replace(model, groups=(replace(model.groups[1], group=replace(model.groups[1].group, count=1)),))
    count = 640
    drawn = Traffic(np.zeros(count), np.full(count, 200), np.full(count, 100))
    simulation = Simulation(alone.replicas, Dispatch.ROUND_ROBIN)
    simulation.offer(drawn)
    simulation.finish()
    use = simulation.use()
    free = replace(
        alone, demand=replace(alone.demand, classes=tuple(replace(c, slos=()) for c in alone.demand.classes))
    )
    bound = clairvoyant(free, drawn, np.zeros(count, np.int64), use.end_s, open_backend("highs"))
    assert use.energy_j is not None
    assert 0.75 * use.energy_j <= bound <= use.energy_j


def test_a_floor_on_quality_and_a_tighter_slo_raise_the_bound(modelled: Modelled) -> None:
    backend = open_backend("highs")
    free, kept = modelled(), modelled("99.95%")
    drawn = free.lengths.draw(4.0, 800, seed=1)
    classes = free.lengths.request_class[drawn.buckets]
    bounds = [clairvoyant(one, drawn, classes, 300.0, backend) for one in (free, kept)]
    assert bounds[1] >= bounds[0]
    first = free.demand.classes[0]
    slos = tuple(replace(slo, threshold_s=slo.threshold_s / 4) if slo.metric == "tpot" else slo for slo in first.slos)
    tighter = replace(free, demand=replace(free.demand, classes=(replace(first, slos=slos), *free.demand.classes[1:])))
    assert clairvoyant(tighter, drawn, classes, 300.0, backend) > bounds[0]


def test_sleepers_sleep_wake_in_time_and_take_less(modelled: Modelled) -> None:
    model = modelled()
    policy = replace(solve_policy(model, levels=4), hold_s=60.0)
    quiet, busy = model.lengths.draw(0.5, 300, seed=1), model.lengths.draw(20.0, 1500, seed=2)
    arrivals = np.concatenate([quiet.arrivals_s, quiet.arrivals_s[-1] + busy.arrivals_s])
    columns = ("input_tokens", "output_tokens", "buckets")
    drawn = Traffic(arrivals, *(np.concatenate([getattr(quiet, c), getattr(busy, c)]) for c in columns))
    found = schedule(policy, drawn)
    slept = [n for n, windows in enumerate(found.up_s) if windows[0][1] < np.inf]
    assert slept
    assert sum(found.wakes) >= 1
    for windows in found.up_s:
        ends = [time for window in windows for time in window]
        assert ends == sorted(ends)
    assert found.waking_j(policy) > 0
    # Only what came before decides: a schedule of the first part is that of the whole, as far as it goes.
    first = schedule(policy, drawn.part(0, 300))
    assert [windows[0][1] for windows in first.up_s] == [windows[0][1] for windows in found.up_s]
