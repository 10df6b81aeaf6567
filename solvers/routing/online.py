"""The online rule: which replica gets a request, from what a router really sees.

A request goes where it costs least, of the replicas whose KV cache and slots it is expected to fit:

    energy  +  miss_j x (how far a predicted latency exceeds its SLO)  -  price of quality x quality

- The energy is that of one more request in a full batch where the policy plans, at the load that is seen, to serve
  such requests on that group; elsewhere that of a request among as many as are in flight, which is dear where they are
  few. A cached prefix saves its prefill.
- TTFT is predicted as one iteration and the prompt tokens that wait before the first token, TPOT from the requests in
  flight; both times what was observed over what was predicted on this replica, and times the margin of the policy.
  TPOT is held to what it is at the load limit of the replica: beyond it the SLOs of some class are not kept.

A load is planned for as few replicas of a group as serve it within the SLOs, since a batch reads the weights once for
all; of those the emptiest gets the request. Others are begun when the latency is worth it: that is the order of
spilling. Where a request fits no replica, it goes to the one that is the least beyond.

A request of a class with a deadline waits for as long as the policy says of when it came, and counts in the load from
then on; then it waits for a replica with room to spare that runs a batch anyway, if any does. A class of which the
policy says nothing waits for one that does. When it is due it goes wherever it costs least.

The floor on a class's mean quality is a ledger: a replica below it takes a request only out of what replicas above it
have saved before, so the floor holds at every moment. The policy's price of quality says where that is best spent; it
falls as more is saved, so that what is there is spent.

Pure Python, without I/O, locks or clocks: a router calls it, and the simulator's compiled copy
(:mod:`qplan.models.simulator.kernel`) is tested to choose alike.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from qplan.core.errors import InputError, nearest
from qplan.core.policy import Policy

RATE_S = 30.0
"""Time constant of the load that is seen, in seconds."""

STEADY_S = 3600.0
"""Time constant of the mean load, which decides how much is kept in hand for bursts."""

GAIN = 0.002
"""Part of the log of observed over predicted latency by which a replica's ratio moves with each observation."""

RATIOS = (0.25, 4.0)

TROUGH = 0.85
"""A request that may wait fills a replica up to this part of what the SLOs allow."""

ASK_AGAIN_S = 1.0
"""When a request that waits for such a replica asks again, at the earliest."""

ASK_GAP_S = 0.01
"""Between two that ask again, so that thousands that wait cost little: they are asked in turn."""

SAVED = 0.02
"""Quality above the floor, of one request, with which its price has fallen to a half."""

PLANNED = 0.01
"""Share of a bucket from which a group is planned for it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a router sees of a request that arrives.

    Attributes
    ----------
    max_output_tokens
        The caller's limit, if it says one.
    home, cached_tokens
        The replica that holds the prefix of the session, and how many of the input tokens that saves.
    arrived_s
        When it came, by the clock of `now_s`; read of classes that may wait.
    asked_s
        When the rule was asked about it last; it is in the load already if it was to begin by then.
    """

    request_class: str
    input_tokens: int
    max_output_tokens: int | None = None
    home: int | None = None
    cached_tokens: int = 0
    arrived_s: float = 0.0
    asked_s: float = -math.inf


@dataclass(slots=True)
class ReplicaState:
    """One replica as a router sees it; whoever dispatches keeps it.

    Attributes
    ----------
    up
        Whether it takes requests: awake, and healthy.
    in_flight
        Requests dispatched to it that are not done.
    waiting_tokens
        Prompt tokens of those that have no token yet.
    held_tokens
        Prompt tokens and expected output tokens of all in flight.
    ttft_ratio, tpot_ratio
        Observed over predicted latency, smoothed.
    """

    group: int
    up: bool = True
    in_flight: int = 0
    waiting_tokens: float = 0.0
    held_tokens: float = 0.0
    ttft_ratio: float = 1.0
    tpot_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes, and what is predicted of it there.

    Attributes
    ----------
    replica
        ``None``: nowhere now; ask again after `wait_s`, or refuse it where that is ``None`` too.
    spilled
        Whether it goes where it is predicted, with its margin, not to keep the SLOs.
    expected_tokens
        To be added to the replica's `held_tokens`, and taken off when the request ends.
    """

    replica: int | None
    spilled: bool = False
    ttft_s: float = math.nan
    tpot_s: float = math.nan
    energy_j: float = math.nan
    expected_tokens: float = 0.0
    wait_s: float | None = None


class OnlineRule:
    """The rule of one router: it counts arrivals, and keeps the ledgers of quality.

    Parameters
    ----------
    policy
        What it follows.
    began_s
        When a horizon of the policy began, on the clock of `now_s`.
    """

    def __init__(self, policy: Policy, began_s: float = 0.0) -> None:
        self.policy = policy
        self._horizon_began_s, self._asks_s = began_s, -math.inf
        self._classes = {one.name: one for one in policy.classes}
        self._buckets = {
            name: [n for n, bucket in enumerate(policy.buckets) if bucket.request_class == name]
            for name in self._classes
        }
        self._ttft_s = {name: one.threshold_s("ttft") for name, one in self._classes.items()}
        self._e2e_s = {name: one.threshold_s("e2e") for name, one in self._classes.items()}
        self._saved = dict.fromkeys(self._classes, 0.0)
        self._work = work(policy)
        self._loads_qps = [level.load_qps for level in policy.levels]
        self._rate_qps, self._steady_qps, self._counted_s = 0.0, 0.0, -math.inf
        self._awake: tuple[int, ...] = tuple(group.count for group in policy.groups)
        self._wanted_s = [[-math.inf] * (group.count + 1) for group in policy.groups]
        self._began_s: float | None = None

    def choose(self, request: Request, states: Sequence[ReplicaState], now_s: float) -> Choice:
        """Choose a replica for a request.

        Parameters
        ----------
        states : (R,)
            The replicas in the order of the policy's groups.

        Raises
        ------
        InputError
            The policy does not know the request's class.
        """
        name, bucket = request.request_class, self.bucket(request.request_class, request.input_tokens)
        begins_s = self.begins_s(name, request.arrived_s)
        if now_s < begins_s:
            return Choice(None, wait_s=begins_s - now_s)
        if request.asked_s < begins_s:
            self._count(bucket, now_s)
        about = self._classes[name]
        due_s = -math.inf if about.deadline_s is None else request.arrived_s + about.deadline_s
        found = self._found(request, bucket, states, now_s, TROUGH if now_s < due_s else 1.0)
        if found.replica is None:
            return found
        alone = states[found.replica].in_flight == 0 and (not about.waits or any(one.in_flight for one in states))
        if now_s < due_s and (found.spilled or alone):
            return Choice(None, wait_s=self._in_line(now_s + ASK_AGAIN_S, due_s) - now_s)
        floor = about.quality_floor
        if floor is not None:
            self._saved[name] += self.policy.groups[states[found.replica].group].quality[name] - floor
        return found

    def begins_s(self, request_class: str, arrived_s: float) -> float:
        """Return until when the policy lets a request wait that came at `arrived_s`."""
        waits = self._classes[request_class].waits
        if not waits:
            return arrived_s
        since_s = (arrived_s - self._horizon_began_s) % self.policy.horizon_s
        n = bisect_right(waits, since_s, key=itemgetter(0))
        if n == len(waits):
            return arrived_s + waits[-1][1]
        (at_s, wait_s), (later_s, later_wait_s) = waits[n - 1], waits[n]
        return arrived_s + wait_s + (since_s - at_s) / (later_s - at_s) * (later_wait_s - wait_s)

    def arrived(self, request_class: str, input_tokens: float, now_s: float) -> None:
        """Count a request in the load that is seen; :meth:`choose` does so itself."""
        self._count(self.bucket(request_class, input_tokens), now_s)

    def take_back(self, request_class: str, state: ReplicaState) -> None:
        """Take a request off the ledger of quality that `state` did not answer; it is asked about again, or is over."""
        floor = self._classes[request_class].quality_floor
        if floor is not None:
            self._saved[request_class] -= self.policy.groups[state.group].quality[request_class] - floor

    def observe(self, state: ReplicaState, choice: Choice, ttft_s: float, tpot_s: float | None) -> None:
        """Learn from the latencies of a request that went to `state`; no TPOT of an answer of one token."""
        if ttft_s > 0 and choice.ttft_s > 0:
            state.ttft_ratio = corrected(state.ttft_ratio, ttft_s / choice.ttft_s)
        if tpot_s is not None and tpot_s > 0 and choice.tpot_s > 0:
            state.tpot_ratio = corrected(state.tpot_ratio, tpot_s / choice.tpot_s)

    def load_qps(self, now_s: float) -> float:
        """Return the load that is seen, in requests/s of the demand's mix."""
        return self._mean_qps(self._rate_qps, RATE_S, now_s)

    def awake(self, now_s: float) -> tuple[int, ...]:
        """Return how many replicas of each group are to be awake.

        It is what the load needs, or needed within the last `hold_s`, and at least what stands by at its mean.
        """
        if self._began_s is None:
            return self._awake
        level = self.policy.levels[self._level(self.load_qps(now_s) * self.policy.headroom)]
        standby = self._standby(self._mean_qps(self._steady_qps, STEADY_S, now_s))
        for group, counts in enumerate(zip(level.awake, standby, strict=True)):
            self._wanted_s[group][max(counts)] = now_s
        oldest_s = now_s - self.policy.hold_s
        if oldest_s < self._began_s:  # nothing is known of before
            return self._awake
        self._awake = tuple(
            max(count for count, when_s in enumerate(wanted) if when_s >= oldest_s) for wanted in self._wanted_s
        )
        return self._awake

    def bucket(self, request_class: str, input_tokens: float) -> int:
        """Return the bucket of a request."""
        if request_class not in self._buckets:
            known = list(self._buckets)
            raise InputError(
                f"unknown class '{request_class}'; the policy has {', '.join(known)}{nearest(request_class, known)}"
            )
        mine = self._buckets[request_class]
        return next(
            (n for n in mine if (end := self.policy.buckets[n].input_tokens_to) is None or input_tokens < end), mine[-1]
        )

    def _count(self, bucket: int, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = self._counted_s = now_s
        passed_s = max(now_s - self._counted_s, 0.0)
        self._rate_qps = self._rate_qps * math.exp(-passed_s / RATE_S) + self._work[bucket] / RATE_S
        self._steady_qps = self._steady_qps * math.exp(-passed_s / STEADY_S) + self._work[bucket] / STEADY_S
        self._counted_s += passed_s

    def _mean_qps(self, rate_qps: float, constant_s: float, now_s: float) -> float:
        """Return a load that was counted with a time constant, as of now."""
        if self._began_s is None:
            return 0.0
        # What was seen for less than the time constant is weighed up to it.
        seen = -math.expm1(-max(now_s - self._began_s, 1.0) / constant_s)
        return rate_qps * math.exp(-(now_s - self._counted_s) / constant_s) / seen

    def _standby(self, mean_qps: float) -> tuple[int, ...]:
        """Return the replicas of each group that never sleep at a mean load."""
        policy = self.policy
        if not policy.standby:
            return (0,) * len(policy.groups)
        whole = tuple(group.count for group in policy.groups)
        return next((one.awake for one in policy.standby if mean_qps <= one.load_qps), whole)

    def _level(self, load_qps: float) -> int:
        return min(bisect_left(self._loads_qps, load_qps), len(self._loads_qps) - 1)

    def _found(
        self, request: Request, bucket: int, states: Sequence[ReplicaState], now_s: float, allowed: float
    ) -> Choice:
        """Return the best replica where a request may use this part of what the SLOs allow."""
        policy, name, about = self.policy, request.request_class, self.policy.buckets[bucket]
        floor = self._classes[name].quality_floor
        level = policy.levels[self._level(self.load_qps(now_s))]
        planned = [n if share >= PLANNED else 0 for n, share in zip(level.serving, level.shares[bucket], strict=True)]
        margin = policy.margin / allowed
        price = level.quality_price.get(name, 0.0) / (1.0 + self._saved[name] / SAVED)
        output = min(about.output_tokens, request.max_output_tokens or math.inf)
        longest = min(about.output_p90, request.max_output_tokens or math.inf)
        expected = request.input_tokens + output
        ttft_slo_s, e2e_slo_s, saved = self._ttft_s[name], self._e2e_s[name], self._saved[name]
        best: int | None = None
        best_key = (math.inf, math.inf, math.inf)
        best_times = (math.nan, math.nan, math.nan, 0.0)
        for r, state in enumerate(states):
            if not state.up:
                continue
            planned[state.group] -= 1
            group = policy.groups[state.group]
            quality = group.quality.get(name)
            if quality is None or (floor is not None and quality < floor > saved + quality):
                continue
            cached = request.cached_tokens if r == request.home else 0
            place, share = place_at(group.in_flight, state.in_flight + 1)
            step_s, tpot_s = read_at(group.step_s, place, share), read_at(group.tpot_s, place, share)
            waiting = state.waiting_tokens + request.input_tokens - cached
            ttft_s = (step_s + group.prefill_s_per_token * waiting) * state.ttft_ratio
            tpot_s *= state.tpot_ratio
            used = margin * max(
                ttft_s / ttft_slo_s, tpot_s / group.full_tpot_s, (ttft_s + longest * tpot_s) / e2e_slo_s
            )
            full = max((state.held_tokens + expected) / group.kv_tokens, (state.in_flight + 1) / group.max_sequences)
            energy_j = group.energy_j[bucket]
            if planned[state.group] < 0:
                energy_j = max(energy_j, read_at(group.energy_among_j[bucket], place, min(share, 1.0)))
            energy_j -= group.prefill_j_per_token * cached
            cost = energy_j - price * quality + policy.miss_j * max(used - 1.0, 0.0)
            key = (max(full, 1.0), cost, float(state.in_flight))
            if key < best_key:
                best, best_key = r, key
                best_times = (ttft_s, tpot_s, energy_j, max(used, full))
        if best is None:
            return Choice(None)
        ttft_s, tpot_s, energy_j, used = best_times
        return Choice(best, used > 1, ttft_s, tpot_s, energy_j, expected)

    def _in_line(self, wanted_s: float, due_s: float) -> float:
        """Return when a request asks again: behind others that do, and when it is due at the latest."""
        asks_s = max(wanted_s, self._asks_s + ASK_GAP_S)
        if asks_s >= due_s:
            return due_s
        self._asks_s = asks_s
        return asks_s


def choose(policy: Policy, request: Request, states: Sequence[ReplicaState]) -> int | None:
    """Choose a replica for one request, as a rule that has seen no other."""
    return OnlineRule(policy).choose(request, states, 0.0).replica


def place_at(axis: Sequence[float], at: float) -> tuple[int, float]:
    """Return the segment of an axis that a value lies in, and its place along it: beyond 1 after the last point."""
    if len(axis) == 1:
        return 0, max(at / axis[0] - 1.0, 0.0)
    left = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
    return left, max((at - axis[left]) / (axis[left + 1] - axis[left]), 0.0)


def read_at(values: Sequence[float], place: int, share: float) -> float:
    """Return the value at a place along an axis; after the last point in proportion to the last segment."""
    if len(values) == 1:
        return values[0] * (1.0 + share)
    return values[place] + share * (values[place + 1] - values[place])


def corrected(ratio: float, factor: float) -> float:
    """Return a ratio of observed over predicted after an observation `factor` times what it predicted."""
    return min(max(ratio * float(factor**GAIN), RATIOS[0]), RATIOS[1])


def work(policy: Policy) -> tuple[float, ...]:
    """Return what a request of each bucket counts in the load, (B,): its energy over that of the mean request."""
    energy = [sum(group.energy_j[b] for group in policy.groups) for b in range(len(policy.buckets))]
    total = sum(bucket.weight for bucket in policy.buckets)
    mean = sum(bucket.weight * one for bucket, one in zip(policy.buckets, energy, strict=True)) / total
    return tuple(one / mean for one in energy) if mean > 0 else (1.0,) * len(energy)
