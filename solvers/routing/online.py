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

A request of a class with a deadline waits for the first period of the grid that is about as clean as the cleanest by
then, where that is cleaner enough; else until a replica has room to spare, one that runs a batch anyway unless the next
period is dirtier. When it is due it goes wherever it costs least then.

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

from qplan.core.errors import InputError, nearest
from qplan.core.policy import Policy

RATE_S = 30.0
"""Time constant of the load that is seen, in seconds."""

STEADY_S = 3600.0
"""Time constant of the mean load, which decides how much is kept in hand for bursts."""

GAIN = 0.002
"""Part of the log of observed over predicted latency by which a replica's ratio moves with each observation."""

RATIOS = (0.25, 4.0)

TROUGH = 0.7
"""A request that may wait fills a replica up to this part of what the SLOs allow."""

ASK_AGAIN_S = 1.0
"""When a request that waits for such a replica asks again, at the earliest."""

ASK_GAP_S = 0.01
"""Between two that ask again, so that thousands that wait cost little: they are asked in turn."""

CLEANER = 0.3
"""Part of its carbon for which a request waits for a cleaner period; less is not worth a fleet that is fuller then."""

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
    counted
        Whether the rule was asked about it before: its arrival is in the load already.
    """

    request_class: str
    input_tokens: int
    max_output_tokens: int | None = None
    home: int | None = None
    cached_tokens: int = 0
    arrived_s: float = 0.0
    counted: bool = False


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
    horizon_s
        When a first period of the policy's carbon begins, on the clock of `now_s`.
    """

    def __init__(self, policy: Policy, horizon_s: float = 0.0) -> None:
        self.policy = policy
        self._horizon_s, self._period_s = horizon_s, policy.period_s
        self._asked_s = [-math.inf] * (1 + len(policy.carbon))
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
        bucket = self.bucket(request.request_class, request.input_tokens)
        if not request.counted:
            self._count(bucket, now_s)
        name = request.request_class
        deadline_s = self._classes[name].deadline_s
        due_s = -math.inf if deadline_s is None else request.arrived_s + deadline_s
        found = self._found(request, bucket, states, now_s, TROUGH if now_s < due_s else 1.0)
        if found.replica is None:
            return found
        if now_s < due_s:
            cleaner, rises = self._outlook(now_s, due_s)
            if cleaner is not None:
                return Choice(None, wait_s=self._in_line(1 + cleaner[0], cleaner[1], due_s) - now_s)
            if found.spilled or (states[found.replica].in_flight == 0 and not rises):
                return Choice(None, wait_s=self._in_line(0, now_s + ASK_AGAIN_S, due_s) - now_s)
        floor = self._classes[name].quality_floor
        if floor is not None:
            self._saved[name] += self.policy.groups[states[found.replica].group].quality[name] - floor
        return found

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

    def _in_line(self, line: int, wanted_s: float, due_s: float) -> float:
        """Return when a request asks again: behind those that wait for the same, and when it is due at the latest."""
        asks_s = max(wanted_s, self._asked_s[line] + ASK_GAP_S)
        if asks_s >= due_s:
            return due_s
        self._asked_s[line] = asks_s
        return asks_s

    def _outlook(self, now_s: float, until_s: float) -> tuple[tuple[int, float] | None, bool]:
        """Return which period by `until_s` is cleaner, and when it begins; else, whether the next is dirtier.

        It is the first that is about as clean as the cleanest; ``None``: none is so much cleaner than now.
        """
        carbon, period_s = self.policy.carbon, self._period_s
        if not carbon:
            return None, False
        since_s = (now_s - self._horizon_s) % period_s[-1]
        start_s = now_s - since_s
        now = min(bisect_right(period_s, since_s) - 1, len(carbon) - 1)
        share = 1.0 - CLEANER
        least, first, rises = carbon[now] * share, None, False
        for n in range(now + 1, now + 1 + len(carbon)):
            again, period = divmod(n, len(carbon))
            begins_s = start_s + again * period_s[-1] + period_s[period]
            if begins_s >= until_s:
                break
            if begins_s > now_s:
                rises = rises or (n == now + 1 and carbon[period] * share > carbon[now])
                if carbon[period] < least:
                    least = carbon[period]
                    if first is None or carbon[first[0]] * share > least:
                        first = period, begins_s
        return first, rises and first is None


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
