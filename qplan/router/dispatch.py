"""From a request to the replica that serves it: the policy's rule over live state, and the queue where none may."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from qplan.core.policy import Policy
from qplan.router.asking import Ask, AskError
from qplan.router.breaker import Circuit
from qplan.router.clock import since_midnight_s
from qplan.router.metrics import AWAKE, IN_FLIGHT, PREDICTED_ENERGY, RESTING, UP, WAITING, Metrics
from qplan.router.replicas import Flight, Replica, Rest
from qplan.router.settings import Limits, Settings
from qplan.solvers.routing.online import OnlineRule, Request

_BYTES_PER_TOKEN = 4.0
_LEARNING = 0.02
_MOST_SESSIONS = 50_000
_RATE_S = 10.0
_LONGEST_RETRY_S = 60


class Dispatcher:
    """The fleet of one router process, and who waits for it.

    Parameters
    ----------
    policy, settings
        What it follows until :meth:`apply` hands it others.
    processes
        Processes of this router: each sees that part of the load.

    Attributes
    ----------
    classes
        Names of the classes of requests; one that names none is of the first.
    models
        Models that clients can ask for: the policy's name, and those of the replicas.
    """

    def __init__(self, policy: Policy, settings: Settings, metrics: Metrics, processes: int = 1) -> None:
        self._metrics = metrics
        self.processes = processes
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._deferred = 0
        self._sessions: OrderedDict[str, tuple[Replica, int]] = OrderedDict()
        self._bytes_per_token = _BYTES_PER_TOKEN
        self._ended_qps, self._ended_s = 0.0, time.monotonic()
        self.replicas: list[Replica] = []
        self._left: list[Replica] = []
        self.limits: Limits
        self.policy: Policy
        self.apply(policy, settings)

    @property
    def waiting(self) -> int:
        """Requests that wait for a replica."""
        return self._deferred + sum(map(len, self._waiting.values()))

    def flights(self) -> list[Flight]:
        """Return what is under way, at replicas that left the fleet, too."""
        self._left = [replica for replica in self._left if replica.flights]
        return [flight for replica in (*self.replicas, *self._left) for flight in replica.flights]

    def serves(self, model: str) -> bool:
        """Whether a client may ask for this model; where a replica did not say its name for it, the replica decides."""
        return not model or model in self.models or self._any_model

    def apply(self, policy: Policy, settings: Settings) -> list[Replica]:
        """Take on a policy and a fleet; return the replicas that are new.

        Those that stay keep their state; those that left finish what they have.
        """
        groups = {group.name: number for number, group in enumerate(policy.groups)}
        before = {(replica.address.name, replica.address.url): replica for replica in self.replicas}
        self.replicas, new = [], []
        for address in settings.replicas:
            replica = before.pop((address.name, address.url), None)
            if replica is None or replica.address.api_key != address.api_key:
                replica = Replica(address, groups[address.group])
                new.append(replica)
            replica.address, replica.state.group = address, groups[address.group]
            self.replicas.append(replica)
        for replica in before.values():
            replica.leaving = True
            self._left.append(replica)
            replica.upstream.close()
            self._metrics.forget(replica=replica.name)
        if not hasattr(self, "policy") or policy != self.policy:
            self._rule = OnlineRule(_shared(policy, self.processes), time.monotonic() - since_midnight_s())
        self.policy, self.limits = policy, settings.limits
        self.classes = tuple(one.name for one in policy.classes)
        named = [replica.address.model for replica in self.replicas]
        self.models = tuple(dict.fromkeys((*(group.model for group in policy.groups), *filter(None, named))))
        self._any_model = not all(named)
        self.wake()
        return new

    async def pick(self, ask: Ask, request_class: str, arrived_s: float, tried: Collection[Replica] = ()) -> Flight:
        """Choose a replica and take note that the request goes there; wait where none may be chosen.

        Parameters
        ----------
        arrived_s
            When the request came, on :func:`time.monotonic`.
        tried
            Replicas that failed it; others are preferred while there are any.

        Raises
        ------
        AskError
            Too many wait (429), or none could be chosen in time (429, or 503 where none is well).
        """
        until_s = time.monotonic() + self.limits.wait
        queue = self._waiting.setdefault(request_class, deque())
        turn = not queue  # whoever waits comes first
        asked_s = time.monotonic() if tried else -math.inf
        while True:
            if turn:
                flight, defer_s = self._chosen(ask, request_class, arrived_s, tried, asked_s)
                if flight is not None:
                    self._pass_on(queue)
                    return flight
                if defer_s is not None:
                    asked_s = time.monotonic()
                    await self._defer(defer_s)
                    until_s += defer_s
                    continue
                if time.monotonic() >= until_s:
                    raise self._refused()
            if self.waiting >= self.limits.queue:
                raise AskError(429, "too many requests wait for a replica", "queue_full")
            await self._wait(queue, until_s - time.monotonic(), first=turn)
            turn = True

    def ended(self, flight: Flight) -> None:
        """Take note that a request is over, however it ended."""
        flight.replica.end(flight)
        now_s = time.monotonic()
        self._ended_qps = self._ended_qps * math.exp((self._ended_s - now_s) / _RATE_S) + 1 / _RATE_S
        self._ended_s = now_s
        self.wake()

    def unanswered(self, flight: Flight) -> None:
        """Take note that a replica gave no answer, or that nobody waits for it any more: it has served nobody."""
        if flight.rule is self._rule:  # not one that a reload has replaced
            flight.rule.take_back(flight.request.request_class, flight.replica.state)
        self.ended(flight)

    def learn(self, flight: Flight, prompt_tokens: int, ttft_s: float, tpot_s: float | None) -> None:
        """Correct predictions by a request that was answered."""
        self._rule.observe(flight.replica.state, flight.choice, ttft_s, tpot_s)
        ask = flight.ask
        if prompt_tokens and ask.prompt_bytes and not ask.prompt_tokens:
            seen = min(max(ask.prompt_bytes / prompt_tokens, 0.5), 16.0)
            self._bytes_per_token += _LEARNING * (seen - self._bytes_per_token)
        if ask.session:
            self._sessions[ask.session] = flight.replica, prompt_tokens or flight.request.input_tokens
            self._sessions.move_to_end(ask.session)
            if len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)

    def untried(self, tried: Collection[Replica]) -> bool:
        """Whether there is a replica that may be asked and was not yet."""
        now_s = time.monotonic()
        return any(replica not in tried and replica.serves(now_s) for replica in self.replicas)

    def wake(self) -> None:
        """Let the first that waits of each class ask again."""
        for queue in self._waiting.values():
            self._pass_on(queue)

    def retry_after_s(self) -> int:
        """Return when a refused client had better come again: when those that wait are likely served."""
        rate_qps = self._ended_qps * math.exp((self._ended_s - time.monotonic()) / _RATE_S)
        return min(max(1, math.ceil((self.waiting + 1) / rate_qps)), _LONGEST_RETRY_S) if rate_qps > 0.01 else 5

    def measure(self) -> None:
        """Bring the gauges up to date."""
        for replica in self.replicas:
            labels = {"replica": replica.name, "group": replica.address.group}
            self._metrics.set(IN_FLIGHT, len(replica.flights), **labels)
            self._metrics.set(UP, float(replica.breaker.state is Circuit.CLOSED), **labels)
            if replica.address.sleep is not None:
                self._metrics.set(RESTING, float(replica.rest is not Rest.AWAKE), **labels)
        self._metrics.set(WAITING, self.waiting)
        for group, count in zip(self.policy.groups, self._rule.awake(time.monotonic()), strict=True):
            self._metrics.set(AWAKE, count / self.processes, group=group.name)

    def _chosen(
        self, ask: Ask, request_class: str, arrived_s: float, tried: Collection[Replica], asked_s: float
    ) -> tuple[Flight | None, float | None]:
        """Return the flight, or for how long the policy wants the request to wait."""
        now_s = time.monotonic()
        replicas = self._candidates(now_s, tried)
        if not replicas:
            return None, None
        request = self._request(ask, request_class, arrived_s, replicas, asked_s)
        choice = self._rule.choose(request, [replica.state for replica in replicas], now_s)
        if choice.replica is None:
            return None, choice.wait_s
        replica = replicas[choice.replica]
        self._metrics.add(PREDICTED_ENERGY, choice.energy_j, replica=replica.name, group=replica.address.group)
        return replica.begin(ask, request, choice, self._rule), None

    def _candidates(self, now_s: float, tried: Collection[Replica]) -> list[Replica]:
        admitted = [replica for replica in self.replicas if replica.admits(now_s)]
        return [replica for replica in admitted if replica not in tried] or admitted

    def _request(
        self, ask: Ask, request_class: str, arrived_s: float, replicas: Sequence[Replica], asked_s: float
    ) -> Request:
        tokens = ask.prompt_tokens + math.ceil(ask.prompt_bytes / self._bytes_per_token)
        kept = self._sessions.get(ask.session) if ask.session else None
        home = replicas.index(kept[0]) if kept is not None and kept[0] in replicas else None
        cached = min(kept[1], tokens) if kept is not None and home is not None else 0
        return Request(request_class, tokens, ask.max_tokens, home, cached, arrived_s, asked_s)

    async def _defer(self, defer_s: float) -> None:
        """Hold a request that may wait for a better time; the policy says when it is asked again."""
        if self.waiting >= self.limits.queue:
            raise AskError(429, "too many requests wait for a replica", "queue_full")
        self._deferred += 1
        try:
            await asyncio.sleep(defer_s)
        finally:
            self._deferred -= 1

    async def _wait(self, queue: deque[asyncio.Future[None]], wait_s: float, *, first: bool) -> None:
        """Wait for a turn, for so long at most; in front of the queue for one that had its turn already."""
        turn = asyncio.get_running_loop().create_future()
        if first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        try:
            async with asyncio.timeout(wait_s):
                await turn
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on(queue)  # a turn that came to one that has just left
            raise
        finally:
            with suppress(ValueError):
                queue.remove(turn)

    @staticmethod
    def _pass_on(queue: deque[asyncio.Future[None]]) -> None:
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _refused(self) -> AskError:
        now_s = time.monotonic()
        if any(replica.breaker.admits(now_s) for replica in self.replicas):
            return AskError(429, "all replicas are full", "overloaded")
        return AskError(503, "no replica is available", "no_replica")


def _shared(policy: Policy, processes: int) -> Policy:
    """Return the policy for one of several processes, each of which sees its part of the load."""
    if processes == 1:
        return policy
    return replace(
        policy,
        levels=tuple(replace(level, load_qps=level.load_qps / processes) for level in policy.levels),
        standby=tuple(replace(one, load_qps=one.load_qps / processes) for one in policy.standby),
    )
