"""The least power of a fleet by load: against enumeration, and what its prices say."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from qplan.core.errors import InfeasibleError
from qplan.solvers.backends import open_backend
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.optimum import greatest_load_qps, optima

Modelled = Callable[..., FleetModel]


def least_by_enumeration(model: FleetModel, load: float, steps: int = 60) -> float:
    """Try every number of replicas awake, and every split of all requests alike in small steps."""
    best = np.inf
    one, other = model.groups
    for awake, part in product(product(range(3), range(3)), range(steps + 1)):
        rates = (load * part / steps, load * (steps - part) / steps)
        if any(r > n * g.limit_qps + 1e-9 for r, n, g in zip(rates, awake, (one, other), strict=True)):
            continue
        watts = 0.0
        for rate, n, group in zip(rates, awake, (one, other), strict=True):
            loads, power = group.hull()
            watts += n * float(np.interp(rate / n, loads, power)) if n else 0.0
            watts += (group.count - n) * group.asleep_w
        best = min(best, watts)
    return best


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
def test_no_split_of_like_requests_takes_less(share: float, modelled: Modelled) -> None:
    model = modelled()
    load = share * model.limit_qps
    (found,) = optima(model, [load], open_backend("highs"))
    tried = least_by_enumeration(model, load)
    assert found.bound_w <= found.power_w <= tried * (1 + 1e-6)
    # The optimum may also split buckets unlike, so it is a little below.
    assert found.power_w >= 0.95 * tried


def test_all_is_served_within_the_limits(modelled: Modelled) -> None:
    model = modelled()
    load = 0.7 * model.limit_qps
    (found,) = optima(model, [load], open_backend("highs"))
    np.testing.assert_allclose(found.rate_qps.sum(axis=1), load * model.lengths.weight, rtol=1e-6)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)
    for g, group in enumerate(model.groups):
        used = found.rate_qps[:, g] @ (group.time_s / (group.time_s @ model.lengths.weight))
        assert used <= group.limit_qps * found.awake[g] * (1 + 1e-6)


def test_power_rises_with_load_and_nobody_is_awake_for_nothing(modelled: Modelled) -> None:
    model = modelled()
    found = optima(model, [share * model.limit_qps for share in (0.1, 0.4, 0.8)], open_backend("highs"))
    watts = [one.power_w for one in found]
    assert watts == sorted(watts)
    assert found[0].awake.sum() < found[2].awake.sum()


def test_a_floor_on_quality_moves_requests_and_has_a_price(modelled: Modelled) -> None:
    free, kept = modelled(), modelled("99.95%")
    k = kept.lengths.names.index("chat")
    mine = kept.lengths.request_class == k
    quality = np.array([group.quality[k] for group in kept.groups])
    assert quality[1] < 0.9995 < quality[0]
    means = []
    for model in (free, kept):
        (found,) = optima(model, [0.3 * model.limit_qps], open_backend("highs"))
        means.append(float((found.rate_qps[mine] @ quality).sum() / found.rate_qps[mine].sum()))
        assert (found.quality_price[k] > 0) == (model is kept)
    assert means[0] < 0.9995 <= means[1] + 1e-6


def test_one_more_replica_is_worth_something_only_where_the_load_wants_it(modelled: Modelled) -> None:
    model = modelled()
    low, high = optima(model, [0.1 * model.limit_qps, 0.95 * model.limit_qps], open_backend("highs"))
    assert low.capacity_price.max() <= high.capacity_price.max()
    assert high.capacity_price.max() > 0


def test_a_load_beyond_the_fleet_is_refused(modelled: Modelled) -> None:
    model = modelled()
    greatest = greatest_load_qps(model, open_backend("highs"))
    assert greatest <= model.limit_qps * (1 + 1e-9)
    with pytest.raises(InfeasibleError, match="cannot serve"):
        optima(model, [1.3 * model.limit_qps], open_backend("highs"))


def test_power_is_above_its_hull(modelled: Modelled) -> None:
    for group in modelled().groups:
        loads, watts = group.hull()
        slopes = np.diff(watts) / np.diff(loads)
        assert (np.diff(slopes) > -1e-9).all()
        inside = group.rate_qps < group.limit_qps
        assert (group.power_w[inside] >= np.interp(group.rate_qps[inside], loads, watts) - 1e-6).all()
        assert not group.convex
