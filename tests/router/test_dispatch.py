"""The queue before the replicas: who waits, who is next, who is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from qplan.core.policy import PolicyClass
from qplan.router.asking import CHAT, Ask, AskError
from qplan.router.clock import since_midnight_s
from qplan.router.dispatch import Dispatcher
from qplan.router.metrics import Metrics
from qplan.router.replicas import Flight
from qplan.router.settings import Limits, ReplicaAddress, Settings
from tests.router.live import make_policy


def addresses(count: int, in_flight: int = 1) -> tuple[ReplicaAddress, ...]:
    return tuple(ReplicaAddress(f"r{n}", f"http://h:{n + 1}", "g", in_flight) for n in range(count))


def dispatcher(count: int = 1, in_flight: int = 1, **limits: Any) -> Dispatcher:
    return Dispatcher(make_policy(), Settings(addresses(count, in_flight), limits=Limits(**limits)), Metrics())


def asked(session: str = "", size: int = 400) -> Ask:
    return Ask(CHAT, b"", "m", True, size, 0, None, session)


async def pick(one: Dispatcher, **fields: Any) -> Flight:
    return await one.pick(asked(**fields), "chat", 0.0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def test_a_class_that_may_wait_is_held_as_the_policy_says_by_the_clock_of_the_day() -> None:
    async def work() -> None:
        policy, then_s = make_policy(), since_midnight_s()
        # What comes in the next minute waits for 1 s, and everything else not at all.
        waits = ((0.0, 0.0), (then_s, 0.0), (then_s, 1.0), (then_s + 60, 1.0), (then_s + 60, 0.0), (2 * 86400.0, 0.0))
        patient = PolicyClass("chat", policy.classes[0].slos, deadline_s=8.0, waits=waits)
        greener = replace(policy, classes=(patient,), horizon_s=2 * 86400.0)
        one = Dispatcher(greener, Settings(addresses(1, 9)), Metrics())
        one.replicas[0].state.in_flight = 4  # it runs anyway
        began_s = time.monotonic()
        one.ended(await one.pick(asked(), "chat", began_s))
        assert time.monotonic() - began_s > 0.9

    run(work)


def test_quality_is_booked_once_however_many_replicas_are_asked() -> None:
    async def work() -> None:
        policy = make_policy()
        choosy = PolicyClass("chat", policy.classes[0].slos, quality_floor=0.95)
        low = replace(policy.groups[0], name="low", quality={"chat": 0.9})
        spread: dict[str, Any] = {"awake": (4, 4), "serving": (0, 4), "capacity_price": (0.0, 0.0), "spill": (1, 0)}
        level = replace(policy.levels[0], shares=((0.0, 1.0),), **spread)
        mixed = replace(policy, classes=(choosy,), groups=(policy.groups[0], low), levels=(level,))
        fleet = (ReplicaAddress("high", "http://h:1", "g", 9), ReplicaAddress("low", "http://h:2", "low", 9))
        one = Dispatcher(mixed, Settings(fleet, limits=Limits(wait=0.01)), Metrics())
        high = {one.replicas[0]}
        for _ in range(5):  # answered, they would pay for as many answers of the other
            one.unanswered(await one.pick(asked(), "chat", 0.0))
        with pytest.raises(AskError):
            await one.pick(asked(), "chat", 0.0, high)
        assert (await one.pick(asked(), "chat", 0.0)).replica.name == "high"
        assert (await one.pick(asked(), "chat", 0.0, high)).replica.name == "low"  # what was saved is spent

    run(work)


def test_who_came_first_is_served_first() -> None:
    async def work() -> None:
        one, served = dispatcher(), []
        running = await pick(one)

        async def client(number: int) -> None:
            flight = await pick(one)
            served.append(number)
            await asyncio.sleep(0)
            one.ended(flight)

        clients = [asyncio.create_task(client(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        assert (one.waiting, served) == (5, [])
        one.ended(running)
        await asyncio.gather(*clients)
        assert served == [0, 1, 2, 3, 4]
        assert one.waiting == 0

    run(work)


def test_a_full_queue_refuses_and_a_long_wait_ends() -> None:
    async def work() -> None:
        one = dispatcher(queue=1, wait=0.05)
        await pick(one)
        waits = asyncio.create_task(pick(one))
        await asyncio.sleep(0)
        with pytest.raises(AskError, match="too many requests wait") as full:
            await pick(one)
        assert full.value.status == 429
        with pytest.raises(AskError, match="all replicas are full"):
            await waits
        assert one.waiting == 0
        assert 1 <= one.retry_after_s() <= 60

    run(work)


def test_without_a_replica_that_is_well_the_answer_is_503() -> None:
    async def work() -> None:
        one = dispatcher(wait=0.01)
        one.replicas[0].breaker.trip()
        with pytest.raises(AskError) as refused:
            await pick(one)
        assert refused.value.status == 503

    run(work)


def test_one_that_leaves_the_queue_does_not_take_a_turn_with_it() -> None:
    async def work() -> None:
        one = dispatcher()
        running = await pick(one)
        first, second = asyncio.create_task(pick(one)), asyncio.create_task(pick(one))
        await asyncio.sleep(0)
        one.ended(running)  # the turn is the first's ...
        first.cancel()  # ... who goes in the same moment
        await asyncio.wait_for(second, 30)
        with pytest.raises(asyncio.CancelledError):
            await first

    run(work)


def test_state_returns_to_nothing() -> None:
    async def work() -> None:
        one = dispatcher(in_flight=10)
        flights = [await pick(one) for _ in range(10)]
        state = one.replicas[0].state
        assert state.in_flight == 10
        assert state.waiting_tokens == 1000
        one.replicas[0].begun(flights[0])
        assert state.waiting_tokens == 900
        for flight in flights:
            one.ended(flight)
        assert (state.in_flight, state.waiting_tokens, state.held_tokens) == (0, 0, 0)

    run(work)


def test_what_other_routers_sent_counts_too() -> None:
    async def work() -> None:
        one = dispatcher(in_flight=10)
        replica = one.replicas[0]
        flight = await pick(one)
        replica.seen_by_engine(6)
        assert replica.state.in_flight == 6
        one.ended(flight)
        assert replica.state.in_flight == 5
        replica.seen_by_engine(None)
        assert replica.state.in_flight == 0

    run(work)


def test_a_conversation_returns_to_its_replica() -> None:
    async def work() -> None:
        one = dispatcher(count=2, in_flight=10)
        first = await pick(one, session="s")
        busy = first.replica
        one.replicas[0].begun(first)
        one.learn(first, 100, 0.01, 0.001)
        one.ended(first)
        later = await pick(one, session="s", size=800)
        assert later.request.home == one.replicas.index(busy)
        assert later.request.cached_tokens == 100
        for replica, waiting in ((later.request.home, 100), (1 - later.request.home, 200)):
            flight = busy.begin(later.ask, later.request, replace(later.choice, replica=replica), later.rule)
            assert flight.waiting_tokens == waiting  # only its own replica has the prefix

    run(work)


def test_reloading_keeps_state_and_lets_those_that_left_finish() -> None:
    async def work() -> None:
        one = dispatcher(count=2, in_flight=1)
        flights = [await pick(one), await pick(one)]
        stays = next(flight.replica for flight in flights if flight.replica.name == "r1")
        new = one.apply(one.policy, Settings((*addresses(2)[1:], ReplicaAddress("r9", "http://h:9", "g", 1))))
        assert [replica.name for replica in new] == ["r9"]
        assert one.replicas[0] is stays
        assert len(one.flights()) == 2
        for flight in flights:
            one.ended(flight)
        assert not one.flights()

    run(work)


def test_a_class_that_may_wait_is_held_until_its_deadline() -> None:
    async def work() -> None:
        policy = make_policy()
        patient = PolicyClass("chat", policy.classes[0].slos, deadline_s=0.05)
        one = Dispatcher(replace(policy, classes=(patient,)), Settings(addresses(1)), Metrics())
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        flight = await one.pick(asked(), "chat", began_s)  # its replica would have to start for it alone
        assert 0.04 < loop.time() - began_s < 1
        one.ended(flight)

    run(work)
