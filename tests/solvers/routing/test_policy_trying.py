"""What a policy needs in hand for bursts: a margin and replicas on standby, found on arrivals that were seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.policy import Policy, PolicyStandby
from qplan.models.simulator.traffic import Traffic
from qplan.solvers.routing.compiled import ruled
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.online import OnlineRule
from qplan.solvers.routing.sleeping import schedule
from qplan.solvers.routing.solving import solve_policy
from qplan.solvers.routing.trying import FEWER, LIKE_OTHERS, Trial

Modelled = Callable[..., FleetModel]


def in_bursts(traffic: Traffic, size: int) -> Traffic:
    """Return the requests come `size` at a time, in a tenth of the time."""
    starts = traffic.arrivals_s[::size].repeat(size)[: len(traffic)]
    return replace(traffic, arrivals_s=starts + 0.1 * (traffic.arrivals_s - starts))


@pytest.fixture(scope="module")
def policies(modelled: Modelled) -> dict[str, Policy]:
    """One that saw Poisson arrivals, and one that saw bursts."""
    model = modelled()
    drawn = model.lengths.draw(1.0, 1800, seed=5)
    return {
        name: solve_policy(model, levels=4, seen=seen)
        for name, seen in (("poisson", drawn), ("bursts", in_bursts(drawn, 60)))
    }


def stands_by(policy: Policy, load_qps: float) -> int:
    return sum(next(one.awake for one in policy.standby if load_qps <= one.load_qps))


def test_all_stand_by_in_the_end_and_the_more_the_more_it_bursts(policies: dict[str, Policy]) -> None:
    for policy in policies.values():
        whole = tuple(group.count for group in policy.groups)
        assert policy.standby[-1] == PolicyStandby(policy.levels[-1].load_qps, whole)
    calm, bursty = policies["poisson"], policies["bursts"]
    low_qps = calm.levels[0].load_qps
    assert stands_by(calm, low_qps) < sum(group.count for group in calm.groups)
    assert stands_by(calm, low_qps) <= stands_by(bursty, low_qps)
    assert calm.margin < bursty.margin


@pytest.mark.parametrize("arrivals", ["poisson", "bursts"])
def test_the_policy_keeps_what_others_keep(arrivals: str, policies: dict[str, Policy], modelled: Modelled) -> None:
    model, policy = modelled(), policies[arrivals]
    drawn = model.lengths.draw(1.0, 1500, seed=17)
    unseen = Trial.of(model, drawn if arrivals == "poisson" else in_bursts(drawn, 60))
    for level in policy.levels[:2]:
        wanted, _ = unseen.wanted(level.load_qps)
        assert (unseen.kept(level.load_qps, ruled(policy)) >= wanted - 0.02).all()
        awake = schedule(policy, unseen.at(level.load_qps))
        assert any(windows[0][1] < np.inf for windows in awake.up_s) == (1500 / level.load_qps > policy.hold_s)


def test_what_is_wanted_is_no_more_than_can_be_told(modelled: Modelled) -> None:
    trial = Trial.of(modelled(), modelled().lengths.draw(3.0, 400, seed=1))
    assert trial.traffic.arrivals_s[-1] == pytest.approx(400)
    wanted, promised = trial.wanted(0.01)  # alone, each keeps everything
    assert promised
    assert wanted[:2].tolist() == [LIKE_OTHERS] * 2
    assert 0 < FEWER < 1


def test_what_stands_by_never_sleeps_and_the_rest_does(policies: dict[str, Policy]) -> None:
    policy = policies["poisson"]
    groups = len(policy.groups)
    some = (*(0 for _ in range(groups - 1)), 1)
    kept = replace(policy, hold_s=60.0, standby=(PolicyStandby(1.0, some), PolicyStandby(2.0, (1,) * groups)))
    rule = OnlineRule(kept)
    name, tokens = policy.buckets[0].request_class, policy.buckets[0].input_tokens
    for n in range(400):
        rule.arrived(name, tokens, n * 5.0)
    quiet = rule.awake(2000.0)
    assert quiet[-1] == 1
    assert sum(quiet) < sum(group.count for group in policy.groups)
    for n in range(20000):  # beyond all that stands by
        rule.arrived(name, tokens, 2000.0 + n * 0.02)
    assert rule.awake(2400.0) == tuple(group.count for group in policy.groups)


def test_standby_comes_back_from_json_and_is_checked(policies: dict[str, Policy]) -> None:
    policy = policies["poisson"]
    assert Policy.from_json(policy.to_json()) == policy
    with pytest.raises(InputError, match="of other groups"):
        replace(policy, standby=(PolicyStandby(1.0, (1,)),))
    with pytest.raises(InputError, match="do not rise"):
        replace(policy, standby=(policy.standby[0], policy.standby[0]))
