"""When replicas of a fleet are awake under a policy, by the arrivals that its router sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.policy import Policy
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.traffic import Traffic
from qplan.solvers.routing.online import OnlineRule

TICK_S = 1.0
"""How often a router thinks about who is to be awake."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the replicas are up, and what waking them takes.

    Attributes
    ----------
    up_s : (R,)
        Times from, to at which each takes requests; the last is open.
    wakes : (R,)
        How often each woke.
    """

    up_s: tuple[tuple[tuple[float, float], ...], ...]
    wakes: tuple[int, ...]

    def waking_j(self, policy: Policy) -> float:
        """Return the energy of waking above sleeping: a replica that loads its weights takes idle power."""
        joules = 0.0
        for wakes, g in zip(self.wakes, policy.group_of, strict=True):
            group = policy.groups[g]
            joules += wakes * group.wake_s * ((group.idle_w or 0.0) - (group.asleep_w or 0.0))
        return joules

    def of(self, replicas: Sequence[Replica], policy: Policy) -> list[Replica]:
        """Return the replicas with these times, and what they take asleep."""
        return [
            replace(one, up_s=up, asleep_w=policy.groups[g].asleep_w or 0.0)
            for one, up, g in zip(replicas, self.up_s, policy.group_of, strict=True)
        ]


def schedule(policy: Policy, traffic: Traffic) -> Schedule:
    """Follow the policy's own estimate of the load along `traffic`, whose buckets are the policy's.

    Only what was to begin by then decides, so the schedule is one that a router can keep. All replicas are awake at
    first. In a group the last replicas sleep first; one that is ordered to wake serves ``wake_s`` later.
    """
    rule = OnlineRule(policy)
    up: list[list[list[float]]] = [[[0.0, float("inf")]] for _ in policy.group_of]
    first = [policy.group_of.index(g) for g in range(len(policy.groups))]
    awake = [group.count for group in policy.groups]
    next_s = 0.0
    names = [policy.buckets[bucket].request_class for bucket in traffic.buckets.tolist()]
    begins_s = np.array([rule.begins_s(*one) for one in zip(names, traffic.arrivals_s.tolist(), strict=True)])
    for n in np.argsort(begins_s, kind="stable").tolist():
        now_s = float(begins_s[n])
        rule.arrived(names[n], float(traffic.input_tokens[n]), now_s)
        if now_s < next_s:
            continue
        next_s = now_s + TICK_S
        for g, wanted in enumerate(rule.awake(now_s)):
            for r in range(first[g] + min(awake[g], wanted), first[g] + max(awake[g], wanted)):
                if wanted > awake[g]:
                    up[r].append([now_s + policy.groups[g].wake_s, float("inf")])
                else:
                    _sleep(up[r], now_s)
            awake[g] = wanted
    windows = tuple(tuple((start, end) for start, end in one) for one in up)
    return Schedule(windows, tuple(sum(start > 0 for start, _ in one) for one in windows))


def _sleep(windows: list[list[float]], now_s: float) -> None:
    """End the last window, or take it back where it has not begun."""
    if windows[-1][0] >= now_s:
        windows.pop()
    else:
        windows[-1][1] = now_s
