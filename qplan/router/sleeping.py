"""Putting replicas to sleep and waking them as the policy wants, where the router's file says how.

::

    awake ── more are awake than the policy wants ──► draining ── nothing is under way there ──► ordered ──► asleep
      ▲                                                  │                                                     │
      ├────────────── it is wanted after all ────────────┘                                                     │
      └── it is healthy ── waking ◄── ordered ◄── the policy wants more, or requests wait for a replica ───────┘

Nothing is sent to a replica that is not awake. Of several processes of one router the first decides, by what all of
them see: it tells the others in a file, and orders a replica to sleep once all say that they send nothing there and
have nothing under way there. Who sleeps is learnt from the replicas when a router starts, so that it may be killed at
any moment. For the first ``hold_s`` seconds, in which the load is unknown, only requests that wait wake a replica.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import orjson

from qplan.router.dispatch import Dispatcher
from qplan.router.logs import Log
from qplan.router.metrics import AWAKE, IN_FLIGHT, RESTING, SLEEP_ORDERS, WAITING, Metrics, Sample
from qplan.router.orders import asks, is_asleep, put_to_sleep, wake_up
from qplan.router.replicas import Replica, Rest

_TICK_S = 0.5
_AGAIN_S = 10.0
_MISSED = 3
_FILE = "rest.json"


class Sleeper:
    """Decides who sleeps, and sees to it; one a router.

    Parameters
    ----------
    folder
        Where the processes of the router share what they know; empty for a single one.
    samples
        Returns the metrics of all processes, added up.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: Metrics,
        log: Log,
        folder: str,
        samples: Callable[[], Awaitable[Sequence[Sample]]],
    ) -> None:
        self._dispatcher, self._metrics, self._log, self._folder = dispatcher, metrics, log, folder
        self._samples = samples
        self._began_s = time.monotonic()
        self._missed: dict[Replica, int] = {}
        self._orders: dict[Replica, asyncio.Task[None]] = {}
        self._not_before_s: dict[Replica, float] = {}
        self._waited = False
        self._early: dict[int, tuple[int, float]] = {}

    async def run(self) -> None:
        """Act until the process ends."""
        try:
            while True:
                for one in self._dispatcher.replicas:
                    if one.address.sleep is None:
                        self._becomes(one, Rest.AWAKE)  # by the operator now
                replicas = [one for one in self._dispatcher.replicas if one.address.sleep is not None]
                await asyncio.gather(*(self._look(one) for one in replicas))
                if replicas:
                    self._decide(_by_label(await self._samples()))
                if replicas and self._folder:
                    _tell(self._folder, {one.name: one.rest for one in replicas})
                await asyncio.sleep(_TICK_S)
        finally:
            for task in self._orders.values():
                task.cancel()

    async def _look(self, replica: Replica) -> None:
        """Notice what others ordered, and a sleeper that died, where the replica can be asked."""
        if replica in self._orders or replica.rest is Rest.DRAINING or not asks(replica):
            return
        asleep = await is_asleep(replica)
        if replica in self._orders:
            return
        if asleep is not None:
            self._missed[replica] = 0
            self._becomes(replica, Rest.ASLEEP if asleep else Rest.AWAKE)
        elif (missed := self._missed.get(replica, 0) + 1) < _MISSED:
            self._missed[replica] = missed
        elif replica.rest is Rest.ASLEEP:  # dead, not asleep: its health check says the rest
            replica.breaker.trip()
            self._becomes(replica, Rest.AWAKE)

    def _decide(self, seen: Mapping[tuple[str, str], float]) -> None:
        now_s = time.monotonic()
        processes = self._dispatcher.processes
        for replica in self._dispatcher.replicas:
            if replica.rest is Rest.DRAINING and replica not in self._orders:
                name = replica.name
                idle = not seen.get((IN_FLIGHT.name, name), 0.0) and not replica.others
                if idle and seen.get((RESTING.name, name), 0.0) >= processes:
                    self._order(replica, Rest.ASLEEP)
        waits = self._waits(seen)
        early, self._waited = waits and self._waited, waits
        known = now_s - self._began_s > self._dispatcher.policy.hold_s
        for number, group in enumerate(self._dispatcher.policy.groups):
            count = self._available(number)
            wanted = math.ceil(seen.get((AWAKE.name, group.name), count) - 1e-6) if known else count
            least, until_s = self._early.get(number, (0, 0.0))
            wanted = max(wanted, least) if now_s < until_s else wanted
            while count < wanted and self._more(number, now_s):
                count += 1
            while count > wanted and not waits and self._fewer(number, now_s):
                count -= 1
        if early and not any(one.rest is Rest.WAKING for one in self._dispatcher.replicas):
            for number in self._dispatcher.policy.levels[-1].spill:
                if self._more(number, now_s):
                    self._early[number] = self._available(number), now_s + self._dispatcher.policy.hold_s
                    break

    def _waits(self, seen: Mapping[tuple[str, str], float]) -> bool:
        """Whether requests wait: for a replica, or at one beyond what it runs at once."""
        groups = self._dispatcher.policy.groups
        return seen.get((WAITING.name, ""), 0.0) > 0 or any(
            seen.get((IN_FLIGHT.name, one.name), 0.0) > groups[one.state.group].max_sequences
            for one in self._dispatcher.replicas
        )

    def _available(self, group: int) -> int:
        """Return how many replicas of a group serve, or will when they have woken."""
        return sum(
            one.rest is Rest.WAKING or (one.rest is Rest.AWAKE and not one.breaker.gone) for one in self._of(group)
        )

    def _of(self, group: int) -> list[Replica]:
        return [one for one in self._dispatcher.replicas if one.state.group == group]

    def _more(self, group: int, now_s: float) -> bool:
        """Keep one that drains, or wake one; return whether there was any."""
        for replica in self._of(group):
            if replica.rest is Rest.DRAINING and replica not in self._orders:
                self._becomes(replica, Rest.AWAKE)
                return True
        for replica in self._of(group):
            if replica.rest is Rest.ASLEEP and replica not in self._orders and self._may(replica, now_s):
                self._becomes(replica, Rest.WAKING)
                self._order(replica, Rest.AWAKE)
                return True
        return False

    def _fewer(self, group: int, now_s: float) -> bool:
        """Let one drain, the last first; return whether there was any."""
        for replica in reversed(self._of(group)):
            if replica.rest is Rest.AWAKE and not replica.breaker.gone and self._may(replica, now_s):
                self._becomes(replica, Rest.DRAINING)
                return True
        return False

    def _may(self, replica: Replica, now_s: float) -> bool:
        return replica.address.sleep is not None and now_s >= self._not_before_s.get(replica, 0.0)

    def _order(self, replica: Replica, target: Rest) -> None:
        task = self._orders[replica] = asyncio.create_task(self._ordered(replica, target))
        task.add_done_callback(lambda _: self._orders.pop(replica, None))

    async def _ordered(self, replica: Replica, target: Rest) -> None:
        """Order a replica to sleep or to wake; one that has woken serves once its health check is good."""
        asleep = target is Rest.ASLEEP
        order, reason = ("sleep", await put_to_sleep(replica)) if asleep else ("wake", await wake_up(replica))
        outcome = "failed" if reason else "done"
        labels = {"replica": replica.name, "group": replica.address.group}
        self._metrics.add(SLEEP_ORDERS, **labels, order=order, outcome=outcome)
        why = {"reason": reason} if reason else {}
        self._log.write("order", replica=replica.name, order=order, outcome=outcome, **why)
        if reason:
            self._not_before_s[replica] = time.monotonic() + _AGAIN_S
            target = Rest.AWAKE if asleep else Rest.ASLEEP
        self._becomes(replica, target)

    def _becomes(self, replica: Replica, rest: Rest) -> None:
        if replica.rest is rest:
            return
        self._log.write("rest", replica=replica.name, state=rest, before=replica.rest)
        if replica.rest is Rest.WAKING and rest is Rest.AWAKE:
            replica.breaker.mend()  # its health check was good
        replica.rest = rest
        if rest is Rest.AWAKE:
            self._dispatcher.wake()


async def learn(replicas: Sequence[Replica], folder: str) -> None:
    """Find out who sleeps, when a router starts: by asking, by what its first process said last, else by silence."""
    told = _read(folder)

    async def one(replica: Replica) -> None:
        asleep, said = await is_asleep(replica), told.get(replica.name)
        if not asks(replica):
            asleep = said in (Rest.ASLEEP, Rest.WAKING) if said is not None else asleep is None
        awake = Rest.DRAINING if said is Rest.DRAINING else Rest.AWAKE
        replica.rest = Rest.ASLEEP if asleep else awake

    await asyncio.gather(*(one(replica) for replica in replicas if replica.address.sleep is not None))


async def follow(dispatcher: Dispatcher, folder: str) -> None:
    """Do as the first process of this router says, in the others."""
    while True:
        told = _read(folder)
        for replica in dispatcher.replicas:
            before, replica.rest = replica.rest, told.get(replica.name, replica.rest)
            if replica.address.sleep is None:
                replica.rest = Rest.AWAKE
            if replica.rest is Rest.AWAKE and before is not Rest.AWAKE:
                dispatcher.wake()
        await asyncio.sleep(_TICK_S / 2)


def _by_label(samples: Sequence[Sample]) -> dict[tuple[str, str], float]:
    """Return gauges by family and first label: the replica or the group."""
    return {(name, labels[0][1] if labels else ""): value[0] for name, labels, value in samples}


def _tell(folder: str, rests: Mapping[str, Rest]) -> None:
    new = Path(folder) / "rest.new"
    new.write_bytes(orjson.dumps(rests))
    new.replace(Path(folder) / _FILE)


def _read(folder: str) -> dict[str, Rest]:
    try:
        return {name: Rest(word) for name, word in orjson.loads((Path(folder) / _FILE).read_bytes()).items()}
    except (OSError, orjson.JSONDecodeError):
        return {}
