"""The load that a router sees, in requests/s of the demand's mix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.online import OnlineRule, work
from qplan.solvers.routing.solving import solve_policy


def test_the_mix_of_the_demand_counts_as_many_requests_as_come(modelled: Callable[..., FleetModel]) -> None:
    model = modelled()
    policy = solve_policy(model, levels=2)
    weights = [bucket.weight for bucket in policy.buckets]
    assert sum(weights) == pytest.approx(1.0)
    assert policy.class_weight == pytest.approx({"chat": 0.75, "nightly": 0.25})
    assert np.dot(weights, work(policy)) == pytest.approx(1.0)
    rule = OnlineRule(policy)
    traffic = model.lengths.draw(10.0, 3000, seed=1)
    for bucket, at_s, tokens in zip(traffic.buckets, traffic.arrivals_s, traffic.input_tokens, strict=True):
        rule.arrived(policy.buckets[bucket].request_class, int(tokens), float(at_s))
    assert rule.load_qps(float(traffic.arrivals_s[-1])) == pytest.approx(10.0, rel=0.2)
