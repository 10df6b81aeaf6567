"""Running traffic through a fleet.

:class:`Simulation` takes requests in pieces and gives back those that are done, so that what it holds grows with the
requests in flight and not with the length of the trace; :func:`simulate` runs a whole trace at once.

A fleet that changes over time has replicas that are up at some times only (:attr:`Replica.up_s`); requests that are
dispatched by what they are carry a bucket (:attr:`Traffic.buckets`), which :class:`Split` and :class:`Scored` read::

    night = replace(replica, up_s=((0.0, 6 * 3600.0), (22 * 3600.0, 24 * 3600.0)))
    traffic = Traffic(arrivals_s, input_tokens, output_tokens, buckets)
    served = simulate(traffic, [replica, night], Split(weights), seed=1)  # weights: (buckets, replicas)
    served = simulate(traffic, fleet, Scored(scores, groups))  # scores: (buckets, groups, requests in flight)

Shares that change over time are more buckets: period x buckets + bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qplan.core.errors import InputError
from qplan.models.simulator.dispatch import Among, Dispatch, Routing, Ruled, Scored, Split
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.state import COMPLETION, HOME, KEPT, REPLICA, SEEN, SERIES_BINS, Records, free_pool
from qplan.models.simulator.tables import stacked
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats, Ints

if TYPE_CHECKING:
    from qplan.models.simulator.kernel import Routers, State

CHUNK = 16384
"""Requests that are run at a time: enough that calls cost nothing, few enough that their records stay in cache."""

_FIRST_BIN_S = 2.0**-10


@dataclass(frozen=True, slots=True)
class ReplicaUse:
    """What one replica did.

    Attributes
    ----------
    requests
        That it was given.
    busy_s, running_s, output_tokens
        Seconds in iterations, the sum over sequences of the seconds they ran, and tokens generated.
    energy_j
        Joules up to the end of the run, with those between iterations; ``None`` where its power is unknown.
    bin_s
        Width of the bins of the series that follow, which begin at 0.
    busy, running, output_tokens_per_s : (T,)
        Share of time in iterations, mean number of running sequences, and generated tokens per second.
    power_w : (T,)
        Mean watts; ``None`` where unknown.
    """

    name: str
    requests: int
    busy_s: float
    running_s: float
    output_tokens: float
    energy_j: float | None
    bin_s: float
    busy: Floats
    running: Floats
    output_tokens_per_s: Floats
    power_w: Floats | None


@dataclass(frozen=True, slots=True)
class FleetUse:
    """What the fleet did, until its last request was done at `end_s`."""

    end_s: float
    replicas: tuple[ReplicaUse, ...]

    @property
    def energy_j(self) -> float | None:
        """Joules of all replicas; ``None`` where the power of any is unknown."""
        joules = [replica.energy_j for replica in self.replicas]
        return None if any(one is None for one in joules) else sum(one for one in joules if one is not None)


@dataclass(frozen=True, slots=True)
class Served:
    """What became of N requests, in the order of their arrival.

    Attributes
    ----------
    arrivals_s, ttft_s, tpot_s, e2e_s : (N,)
        Seconds. Latencies are NaN for a request that was refused: its replica could not hold it, or none may take it;
        TPOT also for an answer of one token.
    replica, preemptions : (N,)
        The replica that served it (that decoded it, of a disaggregated fleet; -1 where none may take it), and how often
        it lost its KV cache and started again.
    deferred_s, cached_tokens : (N,)
        How long it waited with its router for the sake of the policy, which the other latencies include; and the tokens
        of its prompt that its replica had kept from the turn before.
    use
        What the replicas did.
    """

    arrivals_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    replica: Ints
    preemptions: Ints
    deferred_s: Floats
    cached_tokens: Ints
    use: FleetUse


class Runner(Protocol):
    """A fleet that takes requests in pieces: :class:`Simulation`, or a disaggregated one."""

    def offer(self, traffic: Traffic) -> Records:
        """Take the next requests; return those, of all so far, that are done when the last of them arrives."""
        ...

    def finish(self) -> Records:
        """Serve what is left; return it."""
        ...

    def use(self) -> FleetUse:
        """Return what the replicas did."""
        ...


class Simulation:
    """A fleet of replicas behind one dispatcher, each running its engine's continuous batching.

    The same requests, fleet and seed give the same result to the bit; other pieces change no more than its rounding.

    Parameters
    ----------
    fleet
        The replicas.
    dispatch
        Which replica, of those that are up, gets a request; where there is none the request is refused.
    seed
        Of random dispatch and of a split; nothing else is random.
    prefilled
        Requests come with the KV cache of their prompts and their first token: their TTFT is 0.

    Raises
    ------
    InputError
        The fleet is empty, `dispatch` is for another number of replicas, or numba is missing.
    """

    def __init__(
        self,
        fleet: Sequence[Replica],
        dispatch: Routing = Dispatch.ROUND_ROBIN,
        seed: int = 0,
        *,
        prefilled: bool = False,
    ) -> None:
        if not fleet:
            raise InputError("a fleet without a replica; expected at least one")
        self._fleet = tuple(fleet)
        self._ruled = dispatch if isinstance(dispatch, Ruled) else None
        self._policy, self._table, groups = _policy(dispatch, len(self._fleet))
        self._known = len(self._ruled.rule.work) if self._ruled else len(self._table)
        self._random = np.random.default_rng(seed)
        self._prefilled = prefilled
        self._offered = 0
        self._last_s = 0.0
        self._windows = _windows(self._fleet)
        self._state = _initial(self._fleet, self._windows, self._ruled.routers if self._ruled else 0)
        self._state.replicas["group"] = groups
        if self._ruled:
            self._routers = _routers(self._ruled)
            for name, value in zip(("gain", "least_ratio", "most_ratio"), self._ruled.rule.limits[4:], strict=True):
                self._state.replicas[name] = value

    def offer(self, traffic: Traffic) -> Records:
        """Take the next requests; return those, of all so far, that are done when the last of them arrives.

        Raises
        ------
        InputError
            They begin before the last ones ended, or are of a bucket that `dispatch` does not know.
        """
        if len(traffic) and traffic.arrivals_s[0] < self._last_s:
            raise InputError("traffic: arrivals are not in order")
        known = self._known
        if known and len(traffic) and traffic.buckets.max() >= known:
            raise InputError(f"traffic: bucket {traffic.buckets.max()}; the dispatch has buckets 0 to {known - 1}")
        parts = [self._serve(traffic.part(start, start + CHUNK)) for start in range(0, len(traffic), CHUNK)]
        return np.concatenate([np.zeros(0, COMPLETION), *parts])

    def finish(self) -> Records:
        """Serve what is left; return it."""
        none = np.zeros(0, np.int64)
        return self._run(Traffic(np.zeros(0), none, none), np.inf)

    def use(self, end_s: float | None = None) -> FleetUse:
        """Return what the replicas did, up to the end of the last iteration or a later `end_s`."""
        if end_s is None:
            end_s = float(self._state.replicas["now_s"].max())
        bin_s = float(self._state.replicas["bin_s"][0])
        return FleetUse(end_s, tuple(self._use(n, end_s, bin_s) for n in range(len(self._fleet))))

    def _serve(self, traffic: Traffic) -> Records:
        self._last_s = float(traffic.arrivals_s[-1])
        return self._run(traffic, self._last_s)

    def _run(self, traffic: Traffic, until_s: float) -> Records:
        from qplan.models.simulator import kernel

        state = _with_room(self._state, len(traffic))
        affine = self._ruled is not None and self._ruled.affinity
        state = self._state = _with_sessions(state, int(traffic.sessions.max(initial=-1)) + 1, affine=affine)
        columns = (traffic.input_tokens, traffic.output_tokens, traffic.buckets, traffic.sessions)
        requests = (traffic.arrivals_s.astype(np.float64), *(column.astype(np.int64) for column in columns))
        given = (state, self._windows, *requests, self._random.random(len(traffic)), self._offered)
        if self._ruled is None:
            kernel.serve(*given, self._policy, self._table, self._prefilled, until_s)
        else:
            self._routers = _with_places(self._routers, len(state.pool))
            kernel.serve_by_rule(*given, self._ruled.rule, self._routers, until_s)
        self._offered += len(traffic)
        done = state.done[: state.cursor[0]].copy()
        state.cursor[0] = 0
        return done

    def _use(self, n: int, end_s: float, bin_s: float) -> ReplicaUse:
        replica, record = self._fleet[n], self._state.replicas[n]
        bins = min(SERIES_BINS, int(np.ceil(end_s / bin_s)))
        busy_s, sequence_s, energy_j, tokens = self._state.series[n, :bins].T
        edges_s = np.minimum(bin_s * np.arange(bins + 1), end_s)  # the last bin is not whole
        widths = np.diff(edges_s)
        # What is served after going down is not taken from idle time, unless one bin holds some of both.
        idle_s = np.clip(np.diff(replica.up_by_s(edges_s)) - busy_s, 0.0, None)
        rest_s = np.diff(replica.up_by_s(np.array([record["now_s"], max(end_s, record["now_s"])])))[0]
        down_s = np.clip(widths - busy_s - idle_s, 0.0, None)
        idle_up_s = float(record["idle_s"] + rest_s)
        asleep_s = max(end_s - float(record["busy_s"]) - idle_up_s, 0.0)
        idle_w = replica.idle_w
        return ReplicaUse(
            replica.name,
            int(record["assigned"]),
            float(record["busy_s"]),
            float(sequence_s.sum()),
            float(tokens.sum()),
            None if idle_w is None else float(record["energy_j"] + idle_w * idle_up_s + replica.asleep_w * asleep_s),
            bin_s,
            busy_s / widths,
            sequence_s / widths,
            tokens / widths,
            None if idle_w is None else (energy_j + idle_w * idle_s + replica.asleep_w * down_s) / widths,
        )


def simulate(
    traffic: Traffic, fleet: Sequence[Replica], dispatch: Routing = Dispatch.ROUND_ROBIN, seed: int = 0
) -> Served:
    """Serve all of `traffic` with a fleet; see :class:`Simulation`."""
    return run(Simulation(fleet, dispatch, seed), traffic)


def run(runner: Runner, traffic: Traffic) -> Served:
    """Run all of `traffic` through a fleet that has served nothing yet."""
    done = np.concatenate([runner.offer(traffic), runner.finish()])
    done = done[np.argsort(done["row"])]
    latencies = (done["ttft_s"], done["tpot_s"], done["e2e_s"])
    places = (done["replica"], done["preemptions"], done["deferred_s"], done["cached"])
    return Served(traffic.arrivals_s, *latencies, *places, runner.use())


def _policy(dispatch: Routing, replicas: int) -> tuple[int, Floats, Ints]:
    """Return the number of a policy in the kernel, its table (B, G, F), empty for a rule, and the replicas' groups."""
    if isinstance(dispatch, Dispatch):
        return tuple(Dispatch).index(dispatch), np.zeros((0, 1, 1)), np.zeros(replicas, np.int64)
    if isinstance(dispatch, Among):
        table, groups = dispatch.able[:, :, None].astype(float), np.arange(dispatch.able.shape[1])
    elif isinstance(dispatch, Split):
        table, groups = dispatch.weights[:, :, None], np.arange(dispatch.weights.shape[1])
    elif isinstance(dispatch, Scored):
        table, groups = dispatch.scores, dispatch.groups
    else:
        table, groups = np.zeros((0, 1, 1)), dispatch.groups
    if len(groups) != replicas:
        raise InputError(f"a dispatch for {len(groups)} replicas; the fleet has {replicas}")
    if isinstance(dispatch, Among):
        number = tuple(Dispatch).index(dispatch.rule)
    else:
        number = len(Dispatch) + (Split, Scored, Ruled).index(type(dispatch))
    return number, np.ascontiguousarray(table, dtype=float), groups


def _routers(ruled: Ruled) -> Routers:
    """Return routers that have seen nothing yet, and look at the engines one after another."""
    from qplan.models.simulator.kernel import Routers

    count, classes = ruled.routers, len(ruled.rule.floor)
    period_s = ruled.scrape_s if count > 1 else np.inf  # one alone sees all that there is
    first_s = period_s * (1 + np.arange(count)) / count
    return Routers(
        np.tile([0.0, 0.0, np.nan], (count, 1)),
        np.zeros((count, classes)),
        np.full(count, -np.inf),
        np.column_stack([first_s, np.full(count, period_s)]),
        np.zeros(0),
        np.zeros(0, np.int64),
    )


def _with_places(routers: Routers, places: int) -> Routers:
    """Return routers at which all requests of a pool of so many may wait."""
    more = places - len(routers.waiting)
    if more <= 0:
        return routers
    asks_s, waiting = np.zeros(more), np.zeros(more, np.int64)
    return routers._replace(
        asks_s=np.concatenate([routers.asks_s, asks_s]), waiting=np.concatenate([routers.waiting, waiting])
    )


def _windows(fleet: tuple[Replica, ...]) -> Floats:
    """Return when replicas are up, (R, W + 1, 2), the unused places infinite."""
    windows = np.full((len(fleet), 1 + max(len(replica.up_s) for replica in fleet), 2), np.inf)
    for n, replica in enumerate(fleet):
        windows[n, : len(replica.up_s)] = np.reshape(replica.up_s, (-1, 2))
    return windows


def _initial(fleet: tuple[Replica, ...], windows: Floats, routers: int) -> State:
    try:
        from qplan.models.simulator.kernel import State
    except ImportError:
        raise InputError("simulating needs numba: pip install 'qplan[models]'") from None
    (prefill, contexts, times, energies), kinds = stacked(fleet)
    replicas = np.zeros(len(fleet), REPLICA)
    replicas["kind"] = kinds
    replicas["weight"] = [replica.weight for replica in fleet]
    replicas["block_tokens"] = [replica.batching.block_tokens for replica in fleet]
    replicas["blocks"] = replicas["free"] = [replica.kv_tokens // replica.batching.block_tokens for replica in fleet]
    replicas["max_tokens"] = [replica.batching.max_batched_tokens for replica in fleet]
    replicas["max_sequences"] = [replica.batching.max_sequences for replica in fleet]
    replicas["max_context"] = [replica.max_context for replica in fleet]
    replicas["chunked"] = [replica.batching.chunked_prefill for replica in fleet]
    replicas["up_s"], replicas["down_s"] = windows[:, 0].T
    replicas["bin_s"] = _FIRST_BIN_S
    replicas["excused"] = np.where(replicas["up_s"] > 0, np.nan, 0.0)
    for place in ("waiting_head", "waiting_tail", "last", "partial", "kept_first", "kept_last"):
        replicas[place] = -1
    seen = np.zeros((routers, len(fleet)), SEEN)
    seen["ttft_ratio"] = seen["tpot_ratio"] = 1.0
    most = int(replicas["max_sequences"].max())
    return State(
        replicas,
        seen,
        np.zeros((routers, 0), HOME),
        np.zeros((len(fleet), 0), KEPT),
        free_pool(CHUNK),
        np.zeros((len(fleet), 2, most), np.int64),
        np.zeros((len(fleet), int(replicas["block_tokens"].max())), np.int64),
        prefill,
        contexts,
        np.stack([times, energies]),
        np.zeros((len(fleet), SERIES_BINS, 4)),
        np.zeros(CHUNK, COMPLETION),
        np.array([0, 0, 0]),
    )


def _with_room(state: State, requests: int) -> State:
    """Return the state with room for so many more requests in the fleet."""
    needed = int(state.replicas["outstanding"].sum() + state.cursor[2]) + requests
    size = len(state.pool)
    if needed <= size:
        return state
    more = max(needed, 2 * size) - size
    pool = np.concatenate([state.pool, free_pool(more, size)])
    pool["next"][-1] = state.cursor[1]
    state.cursor[1] = size
    return state._replace(pool=pool, done=np.zeros(len(pool), COMPLETION))


def _with_sessions(state: State, sessions: int, *, affine: bool) -> State:
    """Return the state with room for so many sessions, which routers remember where they are `affine`."""
    known = state.kept.shape[1]
    if sessions <= known:
        return state
    more = max(sessions, 2 * known) - known
    homes = _wider(state.homes, more) if affine else state.homes
    return state._replace(kept=_wider(state.kept, more), homes=homes)


def _wider(table: Records, more: int) -> Records:
    return np.concatenate([table, np.zeros((len(table), more), table.dtype)], axis=1)
