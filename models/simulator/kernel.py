"""The compiled loop: iterations of replicas, and many identical ones at a time.

Between an arrival, a completion, an admission and the moment the KV cache runs out of blocks, a batch that only decodes
is the same: every iteration adds one token to each sequence, and its time is piecewise linear in their mean context. A
span of such iterations is summed in closed form, segment by segment of the grid. Iterations that prefill are run one
by one.

What a replica holds lives in arrays that compiled code changes in place (:class:`State`): its requests in linked
lists (``previous``, ``next``) through one pool; its decoding sequences also in a heap by the step at which they end,
and counted by the place in a block that their next token takes, which stays the same as all advance together.

All compiled functions are in this one file: numba's cache is renewed when the file of a function changes, and knows
nothing of the files of those that it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

from qplan.models.simulator.state import SERIES_BINS, Records
from qplan.models.steptimes import Floats, Ints

_Compiled = TypeVar("_Compiled", bound=Callable[..., Any])

NONE = -1
ROUND_ROBIN, LEAST_OUTSTANDING, RANDOM, POWER_OF_TWO, SPLIT, SCORED = range(6)
ARRIVAL, ASK, SCRAPE, END = range(4)
_MANY = 2**62


class Rule(NamedTuple):
    """The online rule: the replica where energy and predicted latencies beyond the SLOs cost least.

    L levels of load, K classes, B buckets, G groups of replicas, F numbers of requests in flight, P times.

    Attributes
    ----------
    loads_qps : (L,)
        Loads of one router up to which each level holds, rising.
    energy_j : (B, G)
        Of one more request where it is planned.
    worth_j : (L, B, G)
        Of the quality that it gets there.
    planned : (L, B, G)
        So many replicas of a group are planned for a bucket; on others a request takes `among_j`, if that is more.
    quality : (K, G)
        NaN where a class may not go.
    floor : (K,)
        Least mean quality of a class; 0 without one.
    deadline_s : (K,)
        Within which a request is to begin; 0 where it may not wait.
    bucket_class : (B,)
    expected_tokens, longest_tokens : (B,)
        Mean and high quantile of the output that is expected.
    work : (B,)
        What a request counts in the load.
    ttft_s, e2e_s : (K,)
        Thresholds; infinite without one.
    prefill_s, prefill_j : (G,)
        Seconds and joules of a prompt token.
    kv_tokens, max_sequences : (G,)
        What a replica holds.
    in_flight, step_s, tpot_s : (G, F)
        Times of an iteration and of a token by the requests in flight, two of them or more; linear beyond the last.
    among_j : (G, B, F)
        Energy of a request among so many.
    full_tpot_s : (G,)
        TPOT at the load limit.
    waits : (K, P, 2)
        What comes at the first of two times waits for the second, linear in between; infinite times: never.
    limits : (7,)
        Cost of exceeding an SLO by its whole, factor from predicted latencies to those that are kept,
        quality saved with which its worth is a half, time constant of the load; gain of a ratio of observed over
        predicted, and the ratio's ends, which each replica has too.
    patience : (4,)
        Part of the SLOs up to which a request that may wait fills a replica, seconds after which it asks again,
        seconds between two that do, and after which the times of `waits` repeat.
    """

    loads_qps: Floats
    energy_j: Floats
    worth_j: Floats
    planned: Ints
    quality: Floats
    floor: Floats
    deadline_s: Floats
    bucket_class: Ints
    expected_tokens: Floats
    longest_tokens: Floats
    work: Floats
    ttft_s: Floats
    e2e_s: Floats
    prefill_s: Floats
    prefill_j: Floats
    kv_tokens: Floats
    max_sequences: Floats
    in_flight: Floats
    step_s: Floats
    tpot_s: Floats
    among_j: Floats
    full_tpot_s: Floats
    waits: Floats
    limits: Floats
    patience: Floats


class Routers(NamedTuple):
    """What M routers keep that follow one rule, each from what came to it; changed in place.

    Attributes
    ----------
    load : (M, 3)
        Requests/s, the time up to which they are counted, and when the first came; NaN before.
    saved : (M, K)
        Quality above the floor that has been served so far.
    asked_s : (M,)
        When the last asks again of those that wait for a replica with room.
    scrape_s : (M, 2)
        When each next reads what engines say is in flight, and after how long again; infinite: never.
    asks_s, waiting : (Q,)
        Requests that wait, as a binary heap by when they ask again: their places in the pool.
    """

    load: Floats
    saved: Floats
    asked_s: Floats
    scrape_s: Floats
    asks_s: Floats
    waiting: Ints


class State(NamedTuple):
    """Arrays of R replicas, of K kinds of them, of M routers, and of the requests that are in the fleet.

    Attributes
    ----------
    replicas : (R,) of `state.REPLICA`
    seen : (M, R) of `state.SEEN`
    homes : (M, S) of `state.HOME`
        Of each session; S is 0 where routers remember none.
    kept : (R, S) of `state.KEPT`
    pool : (Q,) of `state.REQUEST`
        Requests in the fleet, and free places.
    heaps : (R, 2, S)
        Decoding sequences of each replica as a binary heap: the step at which each ends, and its place in the pool.
    block_places : (R, T)
        How many decoding sequences have (tokens computed - replica's step) modulo block size in each class.
    prefill_tokens : (K, P), context_tokens : (K, C)
        Axes of the tables.
    tables : (2, K, P, S + 1, C)
        Time in seconds and energy in joules of an iteration, at each whole number of decoding sequences.
    series : (R, SERIES_BINS, 4)
        Busy seconds, sequence-seconds, joules and output tokens of each replica by time.
    done : (M,) of `state.COMPLETION`
    cursor : (3,)
        Completions written; first free place of the pool; requests that wait with a router.
    """

    replicas: Records
    seen: Records
    homes: Records
    kept: Records
    pool: Records
    heaps: Ints
    block_places: Ints
    prefill_tokens: Floats
    context_tokens: Floats
    tables: Floats
    series: Floats
    done: Records
    cursor: Ints


def _compiled(function: _Compiled) -> _Compiled:
    """Compile a function that only compiled code calls; without a way in from Python that takes half the time."""
    inner: _Compiled = numba.njit(cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(
        function
    )
    return inner


def _inlined(function: _Compiled) -> _Compiled:
    """Compile a function of every iteration into its callers: passing it all the arrays would take as long as it."""
    inner: _Compiled = numba.njit(
        cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
    )(function)
    return inner


@numba.njit(cache=True, error_model="numpy", no_cfunc_wrapper=True)  # type: ignore[untyped-decorator]
def serve(
    state: State,
    windows_s: Floats,
    arrivals_s: Floats,
    input_tokens: Ints,
    output_tokens: Ints,
    buckets: Ints,
    sessions: Ints,
    draws: Floats,
    first_row: int,
    policy: int,
    table: Floats,
    prefilled: bool,
    until_s: float,
) -> None:
    """Dispatch requests as they arrive, and run all replicas until `until_s`.

    The pool has a free place for each request, and `done` room for all that are in the fleet.

    Parameters
    ----------
    windows_s : (R, W + 1, 2)
        When each replica is up, from and to; infinite in places that are not used, of which there is always one.
    arrivals_s, input_tokens, output_tokens, buckets, sessions : (N,)
        Requests in order of arrival.
    draws : (N,)
        Uniform in [0, 1); read under the policies `RANDOM`, `POWER_OF_TWO` and `SPLIT` only.
    first_row
        Row of the first request in the whole trace.
    table : (B, G, F)
        Weights (F = 1) or scores of a bucket on a group of replicas under `SPLIT` and `SCORED`; else where a bucket may
        go (F = 1), or empty where any may go anywhere.
    prefilled
        Whether the KV cache of the prompts comes with them, and the first token has been generated elsewhere.
    """
    sees_load = policy in (LEAST_OUTSTANDING, POWER_OF_TWO, SCORED)
    count = len(arrivals_s)
    for n in range(count + 1):
        now_s = arrivals_s[n] if n < count else until_s
        chosen = NONE
        if n < count and not sees_load:
            if policy == ROUND_ROBIN:
                chosen = _in_turn(state, windows_s, now_s, table, buckets[n])
            else:
                chosen = _at_random(state, windows_s, now_s, table, buckets[n], policy == SPLIT, draws[n])
        for r in range(len(state.replicas)):
            if r == chosen or n == count or sees_load:
                _advance(state, r, now_s)
        if n < count:
            if policy == POWER_OF_TWO:
                chosen = _of_two(state, windows_s, now_s, table, buckets[n], draws[n])
            elif sees_load:
                chosen = _least(state, windows_s, now_s, table, buckets[n], policy == SCORED)
            q = _arrive(
                state, first_row + n, buckets[n], sessions[n], now_s, input_tokens[n], output_tokens[n], prefilled
            )
            _send(state, windows_s, chosen, q, now_s)


@numba.njit(cache=True, error_model="numpy", no_cfunc_wrapper=True)  # type: ignore[untyped-decorator]
def serve_by_rule(
    state: State,
    windows_s: Floats,
    arrivals_s: Floats,
    input_tokens: Ints,
    output_tokens: Ints,
    buckets: Ints,
    sessions: Ints,
    draws: Floats,
    first_row: int,
    rule: Rule,
    routers: Routers,
    until_s: float,
) -> None:
    """Dispatch requests by a rule as they arrive, and as those that wait ask again; the rest is as in :func:`serve`.

    It is a way in of its own, as its code beside that of other policies makes those slower.

    Parameters
    ----------
    draws : (N,)
        Uniform in [0, 1): which router a request comes to.
    """
    n, count, event = 0, len(arrivals_s), ARRIVAL
    while event != END:
        now_s, event, m = (arrivals_s[n], ARRIVAL, NONE) if n < count else (until_s, END, NONE)
        if state.cursor[2] > 0 and routers.asks_s[0] <= now_s:
            now_s, event = routers.asks_s[0], ASK
        if event != END:
            m = int(np.argmin(routers.scrape_s[:, 0]))
            if routers.scrape_s[m, 0] <= now_s:
                now_s, event = routers.scrape_s[m, 0], SCRAPE
        for r in range(len(state.replicas)):
            _advance(state, r, now_s)
        if event == ARRIVAL:
            q = _arrive(state, first_row + n, buckets[n], sessions[n], now_s, input_tokens[n], output_tokens[n], False)
            m = int(draws[n] * len(routers.load))
            state.pool[q].router = m
            _route(state, windows_s, now_s, rule, routers, q)
            n += 1
        elif event == ASK:
            q = routers.waiting[0]
            _pop(routers.asks_s, routers.waiting, state.cursor[2])
            state.cursor[2] -= 1
            _route(state, windows_s, now_s, rule, routers, q)
        elif event == SCRAPE:
            _scrape(state, m, now_s)
            routers.scrape_s[m, 0] += routers.scrape_s[m, 1]


@_compiled
def _up(state: State, windows_s: Floats, r: int, now_s: float) -> bool:
    """Say whether a replica takes requests; `now_s` never falls."""
    replica = state.replicas[r]
    while now_s >= replica.down_s:
        replica.window += 1
        replica.up_s, replica.down_s = windows_s[r, replica.window, 0], windows_s[r, replica.window, 1]
        replica.excused = np.nan
    up: bool = now_s >= replica.up_s
    return up


@_compiled
def _may(state: State, windows_s: Floats, r: int, now_s: float, table: Floats, bucket: int) -> bool:
    """Say whether a replica takes requests of a bucket."""
    may: bool = _up(state, windows_s, r, now_s) and (len(table) == 0 or table[bucket, state.replicas[r].group, 0] > 0)
    return may


@_compiled
def _turn(state: State, r: int, now_s: float) -> float:
    """Return how many requests by its weight a replica that is up has had with the next one."""
    replica = state.replicas[r]
    if np.isnan(replica.excused):  # it came up: level with the one whose turn it is
        least = np.inf
        for other in range(len(state.replicas)):
            one = state.replicas[other]
            if one.up_s <= now_s < one.down_s and not np.isnan(one.excused):
                least = min(least, (one.assigned + one.excused) / one.weight)
        replica.excused = least * replica.weight - replica.assigned if least < np.inf else 0.0
    turn: float = (replica.assigned + replica.excused + 1) / replica.weight
    return turn


@_compiled
def _in_turn(state: State, windows_s: Floats, now_s: float, table: Floats, bucket: int) -> int:
    """Return the replica that has got least by its weight."""
    best, fewest = NONE, np.inf
    for r in range(len(state.replicas)):
        if _may(state, windows_s, r, now_s, table, bucket):
            turn = _turn(state, r, now_s)
            if turn < fewest:
                best, fewest = r, turn
    return best


@_compiled
def _at_random(
    state: State, windows_s: Floats, now_s: float, table: Floats, bucket: int, split: bool, draw: float
) -> int:
    """Return the replica in whose part of the weights the draw falls."""
    total = 0.0
    for r in range(len(state.replicas)):
        total += _weight(state, windows_s, r, now_s, table, bucket, split)
    rest, chosen = draw * total, NONE
    for r in range(len(state.replicas)):
        weight = _weight(state, windows_s, r, now_s, table, bucket, split)
        if weight > 0:
            chosen = r
            if rest < weight:
                break
            rest -= weight
    return chosen


@_compiled
def _weight(state: State, windows_s: Floats, r: int, now_s: float, table: Floats, bucket: int, split: bool) -> float:
    """Return the part of a bucket that a replica gets; 0 while it is down."""
    if not _may(state, windows_s, r, now_s, table, bucket):
        return 0.0
    replica = state.replicas[r]
    weight: float = table[bucket, replica.group, 0] if split else replica.weight
    return weight


@_compiled
def _least(state: State, windows_s: Floats, now_s: float, table: Floats, bucket: int, scored: bool) -> int:
    """Return the replica with the lowest score; of equals the one with the fewest requests by its weight."""
    best, lowest, least, fewest = NONE, np.inf, np.inf, np.inf
    for r in range(len(state.replicas)):
        if not (_up(state, windows_s, r, now_s) if scored else _may(state, windows_s, r, now_s, table, bucket)):
            continue
        replica, there = state.replicas[r], _there(state, r, now_s)
        score = table[bucket, replica.group, min(there, table.shape[2] - 1)] if scored else 0.0
        if score == np.inf or score > lowest:
            continue
        load, turn = (there + 1) / replica.weight, _turn(state, r, now_s)
        if score < lowest or load < least or (load == least and turn < fewest):
            best, lowest, least, fewest = r, score, load, turn
    return best


@_compiled
def _there(state: State, r: int, now_s: float) -> int:
    """Return the requests in flight: what the last iteration finished is still there while that iteration lasts."""
    replica = state.replicas[r]
    there: int = replica.outstanding + (replica.finished if replica.now_s > now_s else 0)
    return there


@_compiled
def _of_two(state: State, windows_s: Floats, now_s: float, table: Floats, bucket: int, draw: float) -> int:
    """Return the one with fewer requests by its weight of two replicas that are drawn; the first of equals."""
    up = 0
    for r in range(len(state.replicas)):
        up += _may(state, windows_s, r, now_s, table, bucket)
    if up == 0:
        return NONE
    first = int(draw * up)
    second = int((draw * up - first) * (up - 1)) if up > 1 else first
    second += up > 1 and second >= first
    one, other, nth = NONE, NONE, 0
    for r in range(len(state.replicas)):
        if _may(state, windows_s, r, now_s, table, bucket):
            one = r if nth == first else one
            other = r if nth == second else other
            nth += 1
    loads = (_there(state, one, now_s) + 1) / state.replicas[one].weight
    return one if loads <= (_there(state, other, now_s) + 1) / state.replicas[other].weight else other


@_compiled
def _route(state: State, windows_s: Floats, now_s: float, rule: Rule, routers: Routers, q: int) -> None:
    """Send a request where the rule of its router says, or let it wait."""
    request = state.pool[q]
    m, k = request.router, rule.bucket_class[request.bucket]
    begins_s, due_s = _begins_s(rule, k, request.arrival_s), request.arrival_s + rule.deadline_s[k]
    if now_s < begins_s:
        _wait(state, routers, q, begins_s)
        return
    if now_s == begins_s:
        _count(rule, routers.load[m], rule.work[request.bucket], now_s)
    may_wait = now_s < due_s
    allowed = rule.patience[0] if may_wait else 1.0
    chosen, ttft_s, tpot_s, held, used = _by_rule(state, windows_s, now_s, rule, routers, q, allowed)
    if chosen != NONE and may_wait:
        alone = _in_sight(state.seen[m, chosen], now_s) == 0
        if alone and rule.waits[k, 0, 0] < np.inf:
            alone = False
            for r in range(len(state.replicas)):
                alone |= _in_sight(state.seen[m, r], now_s) > 0
        if used > 1.0 or alone:
            asks_s = max(now_s + rule.patience[1], routers.asked_s[m] + rule.patience[2])
            if asks_s < due_s:
                routers.asked_s[m] = asks_s
            _wait(state, routers, q, min(asks_s, due_s))
            return
    if chosen != NONE and rule.floor[k] > 0:
        routers.saved[m, k] += rule.quality[k, state.replicas[chosen].group] - rule.floor[k]
    if _send(state, windows_s, chosen, q, now_s):
        _note(state, chosen, q, ttft_s, tpot_s, request.prompt - _expected_cached(state, q, chosen), held)


@_compiled
def _count(rule: Rule, load: Floats, work: float, now_s: float) -> None:
    """Count an arrival in the load that a router sees."""
    if np.isnan(load[2]):
        load[1] = load[2] = now_s
    load[0] = load[0] * np.exp(-max(now_s - load[1], 0.0) / rule.limits[3]) + work / rule.limits[3]
    load[1] = now_s


@_compiled
def _begins_s(rule: Rule, k: int, arrived_s: float) -> float:
    """Return until when the policy lets a request wait."""
    waits, since_s = rule.waits[k], arrived_s % rule.patience[3]
    n = np.searchsorted(waits[:, 0], since_s, side="right")
    if n == 0:
        return arrived_s
    at_s, wait_s, later_s, later_wait_s = waits[n - 1, 0], waits[n - 1, 1], waits[n, 0], waits[n, 1]
    begins_s: float = arrived_s + wait_s + (since_s - at_s) / (later_s - at_s) * (later_wait_s - wait_s)
    return begins_s


@_compiled
def _wait(state: State, routers: Routers, q: int, asks_s: float) -> None:
    """Let a request wait with its router, and ask again."""
    _push(routers.asks_s, routers.waiting, state.cursor[2], asks_s, q)
    state.cursor[2] += 1


@_compiled
def _scrape(state: State, m: int, now_s: float) -> None:
    """Let a router read what engines say is in flight: what it did not send itself is of others."""
    for r in range(len(state.replicas)):
        view = state.seen[m, r]
        view.others = max(0, _there(state, r, now_s) - _own(view, now_s))


@_compiled
def _own(view: Any, now_s: float) -> int:
    """Return the requests of a router that are in flight on a replica."""
    own: int = view.in_flight + (view.ended if view.until_s > now_s else 0)
    return own


@_compiled
def _in_sight(view: Any, now_s: float) -> int:
    """Return the requests in flight on a replica, as a router sees it."""
    there: int = view.others + _own(view, now_s)
    return there


@_compiled
def _expected_cached(state: State, q: int, r: int) -> int:
    """Return how much of a prompt its router expects replica `r` to have kept from the turn before."""
    request = state.pool[q]
    if not 0 <= request.session < state.homes.shape[1]:
        return 0
    home = state.homes[request.router, request.session]
    cached: int = min(home.tokens, request.prompt) if home.replica == r else 0
    return cached


@_compiled
def _by_rule(
    state: State, windows_s: Floats, now_s: float, rule: Rule, routers: Routers, q: int, allowed: float
) -> tuple[int, float, float, float, float]:
    """Return the replica that the online rule chooses, what is predicted of it there, and how full it makes it.

    That is TTFT, TPOT and the tokens expected, and the part that is used of memory and of `allowed` times the SLOs. The
    rule is that of ``qplan.solvers.routing.online``.
    """
    request = state.pool[q]
    m, bucket, prompt = request.router, request.bucket, request.prompt
    k, saved = rule.bucket_class[bucket], routers.saved[m, rule.bucket_class[bucket]]
    # What was seen for less than the time constant is weighed up to it.
    load_qps = routers.load[m, 0] / -np.expm1(-max(now_s - routers.load[m, 2], 1.0) / rule.limits[3])
    level = min(np.searchsorted(rule.loads_qps, load_qps), len(rule.loads_qps) - 1)
    expected = prompt + rule.expected_tokens[bucket]
    best, best_ttft_s, best_tpot_s, best_used = NONE, 0.0, 0.0, 0.0
    best_full, best_cost, emptiest = np.inf, np.inf, _MANY
    group, nth = NONE, NONE
    for r in range(len(state.replicas)):
        if not _up(state, windows_s, r, now_s):
            continue
        replica, g = state.seen[m, r], state.replicas[r].group
        group, nth = g, nth + 1 if g == group else 0
        quality = rule.quality[k, g]
        if np.isnan(quality) or (quality < rule.floor[k] and saved + quality < rule.floor[k]):
            continue
        lasting = replica.until_s > now_s
        there = _in_sight(replica, now_s)
        cached = _expected_cached(state, q, r)
        waiting = replica.waiting_tokens + (replica.first_tokens if lasting else 0.0) + prompt - cached
        held = replica.held_tokens + (replica.ended_tokens if lasting else 0.0) + expected
        place, share = _place(rule.in_flight[g], there + 1.0)
        step_s = _read(rule.step_s[g], place, share)
        ttft_s = (step_s + rule.prefill_s[g] * waiting) * replica.ttft_ratio
        tpot_s = _read(rule.tpot_s[g], place, share) * replica.tpot_ratio
        longest_s = ttft_s + rule.longest_tokens[bucket] * tpot_s
        used = (
            rule.limits[1]
            / allowed
            * max(ttft_s / rule.ttft_s[k], tpot_s / rule.full_tpot_s[g], longest_s / rule.e2e_s[k])
        )
        full = max(held / rule.kv_tokens[g], (there + 1.0) / rule.max_sequences[g])
        cost = rule.energy_j[bucket, g]
        if nth >= rule.planned[level, bucket, g]:
            cost = max(cost, _read(rule.among_j[g, bucket], place, min(share, 1.0)))
        cost -= rule.prefill_j[g] * cached
        cost += rule.limits[0] * max(used - 1.0, 0.0) - rule.worth_j[level, bucket, g] / (1.0 + saved / rule.limits[2])
        equal = max(full, 1.0) == best_full and cost == best_cost
        less = max(full, 1.0) < best_full or (max(full, 1.0) == best_full and cost < best_cost)
        if less or (equal and there < emptiest):
            best, best_ttft_s, best_tpot_s, best_used = r, ttft_s, tpot_s, max(used, full)
            best_full, best_cost, emptiest = max(full, 1.0), cost, there
    return best, best_ttft_s, best_tpot_s, expected, best_used


@_compiled
def _place(axis: Floats, at: float) -> tuple[int, float]:
    """Return the segment of an axis that a value lies in, and its place along it: beyond 1 after the last point."""
    left = 0
    while left < len(axis) - 2 and at >= axis[left + 1]:
        left += 1
    return left, max((at - axis[left]) / (axis[left + 1] - axis[left]), 0.0)


@_compiled
def _read(values: Floats, place: int, share: float) -> float:
    """Return the value at a place along an axis."""
    value: float = values[place] + share * (values[place + 1] - values[place])
    return value


@_compiled
def _note(state: State, r: int, q: int, ttft_s: float, tpot_s: float, waiting: float, held: float) -> None:
    """Note what is predicted of a request that replica `r` has just got."""
    request = state.pool[q]
    view = state.seen[request.router, r]
    request.ttft_s, request.tpot_s, request.waiting, request.held = ttft_s, tpot_s, waiting, held
    view.in_flight += 1
    view.waiting_tokens += waiting
    view.held_tokens += held


@_compiled
def _takes_off(state: State, r: int, q: int, requests: int, first_tokens: float, tokens: float) -> None:
    """Take off a router's view of replica `r` what its last iteration ended; it is there while that lasts."""
    view, until_s = state.seen[state.pool[q].router, r], state.replicas[r].now_s
    if view.until_s != until_s:
        view.until_s, view.ended, view.first_tokens, view.ended_tokens = until_s, 0, 0.0, 0.0
    view.in_flight -= requests
    view.waiting_tokens -= first_tokens
    view.held_tokens -= tokens
    view.ended += requests
    view.first_tokens += first_tokens
    view.ended_tokens += tokens


@_compiled
def _corrected(replica: Any, ratio: float, observed: float, predicted: float) -> float:
    """Return a ratio of observed over predicted latency with one more observation."""
    factor = (observed / predicted) ** replica.gain
    followed: float = min(max(ratio * factor, replica.least_ratio), replica.most_ratio)
    return followed


@_compiled
def _arrive(
    state: State, row: int, bucket: int, session: int, now_s: float, prompt: int, output: int, prefilled: bool
) -> int:
    """Take a request into the pool; return its place."""
    q: int = state.cursor[1]
    request = state.pool[q]
    state.cursor[1] = request.next
    request.row, request.bucket, request.session, request.router = row, bucket, session, NONE
    request.arrival_s, request.prompt, request.output, request.cached = now_s, prompt, output, 0
    request.computed, request.preemptions, request.joined, request.next = 0, 0, NONE, NONE
    request.generated, request.prefilled = (1, 1) if prefilled else (0, 0)
    request.first_s = now_s if prefilled else np.nan
    return q


@_compiled
def _send(state: State, windows_s: Floats, r: int, q: int, now_s: float) -> bool:
    """Put a request into a replica's queue; refuse it, and say so, where that cannot hold it or is none."""
    request = state.pool[q]
    request.sent_s = now_s
    if r == NONE:
        _end(state, r, q, np.nan, np.nan, np.nan)
        return False
    replica = state.replicas[r]
    replica.assigned += 1
    if now_s > replica.now_s:
        replica.idle_s += _up_s(state, windows_s, r, replica.now_s, now_s)
        replica.now_s = now_s
    length = request.prompt + request.output
    if length > replica.max_context or _blocks(replica, length - 1) > replica.blocks:
        _end(state, r, q, np.nan, np.nan, np.nan)
        return False
    if replica.waiting_head == NONE:
        replica.waiting_head = q
    else:
        state.pool[replica.waiting_tail].next = q
    replica.waiting_tail = q
    replica.outstanding += 1
    return True


@_compiled
def _end(state: State, r: int, q: int, ttft_s: float, tpot_s: float, e2e_s: float) -> None:
    """Write the record of a request that is over, and free its place."""
    request, completion = state.pool[q], state.done[state.cursor[0]]
    completion.row, completion.bucket, completion.cached = request.row, request.bucket, request.cached
    completion.replica, completion.preemptions = r, request.preemptions
    completion.arrival_s, completion.deferred_s = request.arrival_s, request.sent_s - request.arrival_s
    completion.ttft_s, completion.tpot_s, completion.e2e_s = ttft_s, tpot_s, e2e_s
    state.cursor[0] += 1
    request.next = state.cursor[1]
    state.cursor[1] = q


@_compiled
def _up_s(state: State, windows_s: Floats, r: int, start_s: float, end_s: float) -> float:
    """Return the seconds up to `end_s`, which is now, from the last time `start_s`, in which a replica is up."""
    w = state.replicas[r].window
    while w > 0 and windows_s[r, w - 1, 1] > start_s:
        w -= 1
    total = 0.0
    while windows_s[r, w, 0] < end_s:
        total += max(min(windows_s[r, w, 1], end_s) - max(windows_s[r, w, 0], start_s), 0.0)
        w += 1
    return total


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _advance(state: State, r: int, until_s: float) -> None:
    """Run the iterations of replica `r` that begin before `until_s`.

    Its source goes into its callers: as a function, all that it calls would be compiled once more.
    """
    replica = state.replicas[r]
    while replica.now_s < until_s and replica.outstanding > 0:
        replica.finished = 0
        if replica.chunked:
            _iterate_chunked(state, r, until_s)
        else:
            _iterate_whole(state, r, until_s)


@_inlined
def _iterate_chunked(state: State, r: int, until_s: float) -> None:
    """Advance every decoding sequence, and prefill as many prompt tokens as the budget leaves (vLLM V1)."""
    replica, pool = state.replicas[r], state.pool
    preempted = _make_room(state, r)
    budget = replica.max_tokens - replica.decoding
    tokens, first = 0, NONE
    if replica.partial != NONE:
        first = replica.partial
        request = pool[first]
        chunk = min(request.prompt + request.generated - request.computed, budget)
        blocks = _blocks(replica, request.computed + chunk) - _blocks(replica, request.computed)
        if blocks > replica.free:
            _preempt(state, r)
            preempted, first = True, NONE
        else:
            replica.free -= blocks
            request.computed += chunk
            tokens, budget = chunk, budget - chunk
    while not preempted and replica.waiting_head != NONE and replica.running < replica.max_sequences and budget > 0:
        q = replica.waiting_head
        request = pool[q]
        length = request.prompt + request.generated - request.prefilled
        if _blocks(replica, length + request.prefilled) > replica.free:
            break
        _admit(state, r)
        if request.prefilled:
            replica.free -= _blocks(replica, length + 1)
            request.computed = length
            _join(state, r, q)
            budget -= 1
            continue
        cached = 0 if request.session == NONE else _take_kept(state, r, q)
        chunk = min(length - cached, budget)
        request.computed = cached + chunk
        replica.free -= _blocks(replica, request.computed)
        tokens, budget = tokens + chunk, budget - chunk
        if first == NONE:
            first = q
    if tokens == 0:
        _decode(state, r, 1 if preempted else _MANY, until_s)
        return
    decoding = replica.decoding
    time_s, energy_j = _at(state, r, tokens)
    _spend(state, r, time_s, energy_j, decoding)
    replica.step += 1
    replica.kv_tokens += decoding
    _finish_decoded(state, r)
    _end_prefills(state, r, first)


@_inlined
def _iterate_whole(state: State, r: int, until_s: float) -> None:
    """Prefill waiting prompts, whole, while everything else stands still; or decode when none can start (vLLM V0)."""
    replica, pool = state.replicas[r], state.pool
    tokens, first = 0, NONE
    while replica.waiting_head != NONE and replica.running < replica.max_sequences:
        q = replica.waiting_head
        request = pool[q]
        length = request.prompt + request.generated - request.prefilled
        if _blocks(replica, length + request.prefilled) > replica.free:
            break
        # A prompt beyond the budget runs alone: engines that do not chunk raise the budget to the longest prompt.
        if not request.prefilled and tokens > 0 and tokens + length > replica.max_tokens:
            break
        _admit(state, r)
        cached = 0 if request.session == NONE or request.prefilled else _take_kept(state, r, q)
        replica.free -= _blocks(replica, length)
        request.computed = length
        if request.prefilled:
            _join(state, r, q)
            continue
        tokens += length - cached
        if first == NONE:
            first = q
    if tokens == 0:
        preempted = _make_room(state, r)
        _decode(state, r, 1 if preempted else _MANY, until_s)
        return
    time_s, energy_j = _at(state, r, tokens)
    _spend(state, r, time_s, energy_j, 0)
    _end_prefills(state, r, first)


@_inlined
def _make_room(state: State, r: int) -> bool:
    """Take the blocks for one more token of each decoding sequence; say whether that preempted any.

    While they do not suffice, the sequence that came last loses all its blocks and goes to the head of the queue.
    """
    replica = state.replicas[r]
    preempted = False
    while _crossing(state, r, 0) > replica.free:
        _preempt(state, r)
        preempted = True
    replica.free -= _crossing(state, r, 0)
    return preempted


@_inlined
def _crossing(state: State, r: int, ahead: int) -> int:
    """Return how many sequences begin a block, `ahead` steps from now."""
    replica = state.replicas[r]
    crossing: int = state.block_places[r, -(replica.step + ahead) % replica.block_tokens]
    return crossing


@_inlined
def _decode(state: State, r: int, steps: int, until_s: float) -> None:
    """Decode until a sequence ends, blocks run out, or an iteration ends at or after `until_s`; at most `steps`."""
    replica = state.replicas[r]
    decoding, size = replica.decoding, replica.block_tokens
    steps = min(steps, state.heaps[r, 0, 0] - replica.step)
    # Over one size of a block every sequence begins exactly one; the blocks of the first step are taken already.
    if replica.free < decoding * ((steps - 1 + size - 1) // size):
        left = replica.free % decoding
        most = replica.free // decoding * size
        while _crossing(state, r, 1 + most) <= left:
            left -= _crossing(state, r, 1 + most)
            most += 1
        steps = min(steps, 1 + most)
    steps, time_s, energy_j = _span(state, replica, steps, until_s - replica.now_s)
    periods, rest = (steps - 1) // size, (steps - 1) % size
    replica.free -= periods * decoding
    for ahead in range(rest):
        replica.free -= _crossing(state, r, 1 + ahead)
    _spend(state, r, time_s, energy_j, decoding * steps)
    replica.step += steps
    replica.kv_tokens += decoding * steps
    _finish_decoded(state, r)


@_inlined
def _span(state: State, replica: Any, steps: int, budget_s: float) -> tuple[int, float, float]:
    """Return steps, time and energy of decoding up to `steps`, or to the first that ends at or after `budget_s`."""
    axis = state.context_tokens[replica.kind]
    times = state.tables[0, replica.kind, 0, replica.decoding]
    energies = state.tables[1, replica.kind, 0, replica.decoding]
    start = replica.kv_tokens / replica.decoding
    done, time_s, energy_j, c = 0, 0.0, 0.0, 0
    while done < steps:
        context = start + done
        if context < axis[0]:
            first, slope, joules, joule_slope = times[0], 0.0, energies[0], 0.0
            count = min(steps - done, int(np.ceil(axis[0] - context)))
        else:
            while c < len(axis) - 2 and context > axis[c + 1]:
                c += 1
            width = axis[c + 1] - axis[c]
            slope, joule_slope = (times[c + 1] - times[c]) / width, (energies[c + 1] - energies[c]) / width
            first = times[c] + slope * (context - axis[c])
            joules = energies[c] + joule_slope * (context - axis[c])
            count = steps - done
            if c < len(axis) - 2:
                count = min(count, int(axis[c + 1] - context) + 1)
        if time_s + _series(first, slope, count) >= budget_s:
            count = _first_beyond(first, slope, count, budget_s - time_s)
            steps = done + count
        time_s += _series(first, slope, count)
        energy_j += _series(joules, joule_slope, count)
        done += count
    return steps, time_s, energy_j


@_inlined
def _series(first: float, slope: float, count: int) -> float:
    """Return first + (first + slope) + ..., `count` terms."""
    return count * (first + slope * (count - 1) / 2)


@_compiled
def _first_beyond(first: float, slope: float, count: int, total: float) -> int:
    """Return how many terms of the series, at most `count`, first sum to `total`."""
    linear = first - slope / 2
    root = linear + np.sqrt(linear * linear + 2 * slope * total)
    terms = min(count, max(1, int(np.ceil(2 * total / root)))) if root > 0 else count
    while terms > 1 and _series(first, slope, terms - 1) >= total:
        terms -= 1
    while terms < count and _series(first, slope, terms) < total:
        terms += 1
    return terms


@_inlined
def _at(state: State, r: int, tokens: int) -> tuple[float, float]:
    """Return time and energy of an iteration that prefills `tokens`, beside what decodes if prefill is chunked."""
    replica = state.replicas[r]
    decoding = replica.decoding if replica.chunked else 0
    axis, contexts = state.prefill_tokens[replica.kind], state.context_tokens[replica.kind]
    p = c = 0
    while p < len(axis) - 2 and tokens >= axis[p + 1]:
        p += 1
    context = contexts[0]
    if decoding > 0:
        context = max(context, replica.kv_tokens / decoding)
    while c < len(contexts) - 2 and context >= contexts[c + 1]:
        c += 1
    u = (tokens - axis[p]) / (axis[p + 1] - axis[p])
    v = (context - contexts[c]) / (contexts[c + 1] - contexts[c])
    times, energies = state.tables[0, replica.kind], state.tables[1, replica.kind]
    time_s = (1 - u) * ((1 - v) * times[p, decoding, c] + v * times[p, decoding, c + 1]) + u * (
        (1 - v) * times[p + 1, decoding, c] + v * times[p + 1, decoding, c + 1]
    )
    energy_j = (1 - u) * ((1 - v) * energies[p, decoding, c] + v * energies[p, decoding, c + 1]) + u * (
        (1 - v) * energies[p + 1, decoding, c] + v * energies[p + 1, decoding, c + 1]
    )
    return time_s, energy_j


@_inlined
def _spend(state: State, r: int, time_s: float, energy_j: float, output_tokens: int) -> None:
    """Let `time_s` pass on replica `r`, and note it in the series."""
    replica, series = state.replicas[r], state.series
    start_s = replica.now_s
    end_s = start_s + time_s
    replica.now_s = end_s
    replica.busy_s += time_s
    replica.energy_j += energy_j
    while end_s >= replica.bin_s * SERIES_BINS:
        _halve(state)
    width_s = replica.bin_s
    first, last = int(start_s / width_s), int(end_s / width_s)
    for b in range(first, last + 1):
        share = 1.0
        if last > first:
            share = (min(end_s, (b + 1) * width_s) - max(start_s, b * width_s)) / time_s
        series[r, b, 0] += share * time_s
        series[r, b, 1] += share * time_s * replica.running
        series[r, b, 2] += share * energy_j
        series[r, b, 3] += share * output_tokens


@_compiled
def _halve(state: State) -> None:
    """Double the bins' width."""
    series = state.series
    for r in range(series.shape[0]):
        for b in range(SERIES_BINS):
            for column in range(series.shape[2]):
                pair = 0.0
                if 2 * b < SERIES_BINS:
                    pair = series[r, 2 * b, column] + series[r, 2 * b + 1, column]
                series[r, b, column] = pair
        state.replicas[r].bin_s *= 2


@_compiled
def _admit(state: State, r: int) -> None:
    """Move the head of the queue to the end of the running list."""
    replica, pool = state.replicas[r], state.pool
    q = replica.waiting_head
    replica.waiting_head = pool[q].next
    pool[q].previous, pool[q].next = replica.last, NONE
    if replica.last != NONE:
        pool[replica.last].next = q
    replica.last = q
    replica.running += 1


@_compiled
def _leave(state: State, r: int, q: int) -> None:
    """Take a request off the running list, and give its blocks back."""
    replica, request = state.replicas[r], state.pool[q]
    if replica.kept > replica.free:
        _evict(state, r)
    if request.previous != NONE:
        state.pool[request.previous].next = request.next
    if request.next != NONE:
        state.pool[request.next].previous = request.previous
    else:
        replica.last = request.previous
    replica.running -= 1
    replica.free += _blocks(replica, request.computed)


@_compiled
def _join(state: State, r: int, q: int) -> None:
    """Let a sequence decode whose prompt, and what it had generated before a preemption, is in the cache."""
    replica, request = state.replicas[r], state.pool[q]
    request.joined = replica.step
    request.prefilled = 0
    state.block_places[r, (request.computed - replica.step) % replica.block_tokens] += 1
    replica.kv_tokens += request.computed
    _push(
        state.heaps[r, 0],
        state.heaps[r, 1],
        replica.decoding,
        replica.step + request.output - request.generated,
        q,
    )
    replica.decoding += 1


@_compiled
def _part(state: State, r: int, q: int) -> None:
    """Let a sequence decode no more: bring its counts up to this step."""
    replica, request = state.replicas[r], state.pool[q]
    steps = replica.step - request.joined
    request.computed += steps
    request.generated += steps
    state.block_places[r, (request.computed - replica.step) % replica.block_tokens] -= 1
    replica.kv_tokens -= request.computed
    replica.decoding -= 1


@_compiled
def _preempt(state: State, r: int) -> None:
    """Take its blocks from the sequence that came last; it is to start again, before all that wait."""
    replica = state.replicas[r]
    q = replica.last
    request = state.pool[q]
    if q == replica.partial:
        replica.partial = NONE
    else:
        _remove(state.heaps[r, 0], state.heaps[r, 1], replica.decoding, q)
        _part(state, r, q)
    _leave(state, r, q)
    request.computed, request.joined = 0, NONE
    request.preemptions += 1
    request.next = replica.waiting_head
    if replica.waiting_head == NONE:
        replica.waiting_tail = q
    replica.waiting_head = q


@_compiled
def _finish_decoded(state: State, r: int) -> None:
    """Complete the sequences that end with this step."""
    replica = state.replicas[r]
    while replica.decoding > 0 and state.heaps[r, 0, 0] == replica.step:
        q = state.heaps[r, 1, 0]
        _pop(state.heaps[r, 0], state.heaps[r, 1], replica.decoding)
        _part(state, r, q)
        _complete(state, r, q)


@_compiled
def _end_prefills(state: State, r: int, first: int) -> None:
    """Give a token to each sequence, from `first` on, whose prompt is prefilled; the last may be in part."""
    replica = state.replicas[r]
    replica.partial = NONE
    q = first
    while q != NONE:
        request = state.pool[q]
        after = request.next
        if request.joined == NONE and request.computed < request.prompt + request.generated:
            replica.partial = q
        elif request.joined == NONE:
            if request.generated == 0:
                request.first_s = replica.now_s
                if request.router != NONE:
                    _takes_off(state, r, q, 0, request.waiting, 0.0)
                    view, seen_s = state.seen[request.router, r], request.first_s - request.sent_s
                    view.ttft_ratio = _corrected(replica, view.ttft_ratio, seen_s, request.ttft_s)
            request.generated += 1
            state.series[r, int(replica.now_s / replica.bin_s), 3] += 1
            if request.generated == request.output:
                _complete(state, r, q)
            else:
                _join(state, r, q)
        q = after


@_compiled
def _complete(state: State, r: int, q: int) -> None:
    replica, request = state.replicas[r], state.pool[q]
    _leave(state, r, q)
    replica.outstanding -= 1
    replica.finished += 1
    tpot_s = np.nan
    if request.output > 1:
        tpot_s = (replica.now_s - request.first_s) / (request.output - 1)
    _end(state, r, q, request.first_s - request.arrival_s, tpot_s, replica.now_s - request.arrival_s)
    if request.session != NONE:
        _keep(state, r, request.session, request.computed // replica.block_tokens)
    if request.router != NONE:
        _takes_off(state, r, q, 1, 0.0, request.held)
        view = state.seen[request.router, r]
        if request.output > 1:
            view.tpot_ratio = _corrected(replica, view.tpot_ratio, tpot_s, request.tpot_s)
        if 0 <= request.session < state.homes.shape[1]:
            home = state.homes[request.router, request.session]
            home.replica, home.tokens = r, request.prompt


@_compiled
def _keep(state: State, r: int, session: int, blocks: int) -> None:
    """Keep the prefix of a session in free blocks, as the one used last."""
    replica, kept = state.replicas[r], state.kept[r]
    if kept[session].blocks > 0:
        _forget(state, r, session)
    if blocks == 0:
        return
    last = replica.kept_last
    kept[session].blocks, kept[session].before, kept[session].after = blocks, last, NONE
    if last != NONE:
        kept[last].after = session
    else:
        replica.kept_first = session
    replica.kept_last = session
    replica.kept += blocks


@_compiled
def _forget(state: State, r: int, session: int) -> None:
    """Keep the prefix of a session no more."""
    replica, kept = state.replicas[r], state.kept[r]
    before, after = kept[session].before, kept[session].after
    if before != NONE:
        kept[before].after = after
    else:
        replica.kept_first = after
    if after != NONE:
        kept[after].before = before
    else:
        replica.kept_last = before
    replica.kept -= kept[session].blocks
    kept[session].blocks = 0


@_compiled
def _evict(state: State, r: int) -> None:
    """Let go of kept blocks that are in use by now: of the prefix used longest ago, from its end."""
    replica = state.replicas[r]
    while replica.kept > replica.free:
        oldest, surplus = state.kept[r, replica.kept_first], replica.kept - replica.free
        if oldest.blocks <= surplus:
            _forget(state, r, replica.kept_first)
        else:
            oldest.blocks -= surplus
            replica.kept -= surplus


@_compiled
def _take_kept(state: State, r: int, q: int) -> int:
    """Take the kept prefix of a request's session into use; return its tokens, all of the prompt but one at most."""
    replica, request = state.replicas[r], state.pool[q]
    _evict(state, r)
    blocks = min(state.kept[r, request.session].blocks, (request.prompt - 1) // replica.block_tokens)
    if blocks > 0:
        _forget(state, r, request.session)
    request.cached = blocks * replica.block_tokens
    cached: int = request.cached
    return cached


@_compiled
def _blocks(replica: Any, tokens: int) -> int:
    """Return the blocks that hold `tokens`."""
    blocks: int = (tokens + replica.block_tokens - 1) // replica.block_tokens
    return blocks


@_compiled
def _push(steps: Ints | Floats, requests: Ints, size: int, step: float, q: int) -> None:
    n = size
    while n > 0 and steps[(n - 1) // 2] > step:
        steps[n], requests[n] = steps[(n - 1) // 2], requests[(n - 1) // 2]
        n = (n - 1) // 2
    steps[n], requests[n] = step, q


@_compiled
def _pop(steps: Ints | Floats, requests: Ints, size: int) -> None:
    """Remove the root of a heap of `size`."""
    step, q = steps[size - 1], requests[size - 1]
    n = 0
    while 2 * n + 1 < size - 1:
        child = 2 * n + 1
        if child + 1 < size - 1 and steps[child + 1] < steps[child]:
            child += 1
        if steps[child] >= step:
            break
        steps[n], requests[n] = steps[child], requests[child]
        n = child
    steps[n], requests[n] = step, q


@_compiled
def _remove(steps: Ints, requests: Ints, size: int, q: int) -> None:
    """Remove request `q` from a heap of `size`."""
    n = 0
    while requests[n] != q:
        n += 1
    while n > 0:  # to the root, past its ancestors, and off
        steps[n], requests[n] = steps[(n - 1) // 2], requests[(n - 1) // 2]
        n = (n - 1) // 2
    _pop(steps, requests, size)
