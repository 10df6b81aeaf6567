"""Replicas that die, freeze, crawl and babble under load: every request is accounted for, and the fleet recovers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from tests.router.crowd import Crowd
from tests.router.live import Replica, Router, fleet, wait_for

LIMITS = "limits: {stall: 1s, first_token: 3s, health: 100ms, connect: 1s}\n"
pytestmark = pytest.mark.slow
MUST_NOT_BE = ("lost", "hung", "corrupt")


@pytest.fixture(scope="module")
def fleet_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, list[Replica]]]:
    replicas = [Replica(name, itl_s=0.002) for name in ("a", "b", "c")]
    # Few at once: the policy would give all of them to the one that is fullest.
    with fleet(tmp_path_factory.mktemp("router"), replicas, extra=LIMITS, in_flight=4) as router:
        yield router, replicas


@pytest.fixture
def three(fleet_of_three: tuple[Router, list[Replica]]) -> tuple[Router, list[Replica]]:
    """The fleet when it is well."""
    router, replicas = fleet_of_three
    wait_for(lambda: set(router.health()["replicas"].values()) == {"up"})
    return router, replicas


def offer(router: Router, during: Callable[[Crowd], Awaitable[None]], clients: int = 8) -> Crowd:
    """Offer load while something happens; then compare what the clients saw with what the router counted."""
    crowd, before = Crowd(router.url, clients), Counter(router.outcomes())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(crowd.run(seconds=60, requests=10**6, during=lambda: during(crowd)))
    assert sum(crowd.ends.values()) == crowd.sent
    assert not [end for end in MUST_NOT_BE if crowd.ends[end]], crowd.ends
    counted = Counter(router.outcomes()) - before
    assert sum(counted.values()) == crowd.sent
    assert counted["ok"] == crowd.ends["complete"]
    assert counted["broken"] == crowd.ends["error event"]
    assert not router.events("bug")
    return crowd


def test_a_replica_is_killed(three: tuple[Router, list[Replica]]) -> None:
    router, replicas = three

    async def kill(_crowd: Crowd) -> None:
        await asyncio.sleep(0.4)
        replicas[0].process.kill()
        await asyncio.sleep(0.6)

    crowd = offer(router, kill)
    assert set(crowd.ends) <= {"complete", "error event"}  # nobody that had not started noticed
    assert crowd.ends["error event"] <= 4  # at most what streamed there
    wait_for(lambda: router.health()["replicas"]["a"] == "down")
    replicas[0].restart()
    wait_for(lambda: router.health()["replicas"]["a"] == "up")


def test_a_replica_freezes(three: tuple[Router, list[Replica]]) -> None:
    router, replicas = three

    async def freeze(crowd: Crowd) -> None:
        await asyncio.sleep(0.4)
        replicas[0].freeze()
        await asyncio.sleep(3)
        before = crowd.ends["complete"]
        await asyncio.sleep(0.5)
        assert crowd.ends["complete"] > before  # the others serve
        replicas[0].thaw()
        await asyncio.sleep(1)

    crowd = offer(router, freeze)
    assert set(crowd.ends) <= {"complete", "error event"}
    assert crowd.ends["error event"] <= 4
    assert crowd.slowest_s < 5
    wait_for(lambda: router.health()["replicas"]["a"] == "up")


def test_all_replicas_restart(three: tuple[Router, list[Replica]]) -> None:
    router, replicas = three

    async def restart(crowd: Crowd) -> None:
        await asyncio.sleep(0.4)
        for replica in replicas:
            replica.process.kill()
        await asyncio.sleep(0.5)
        for replica in replicas:
            await asyncio.to_thread(replica.restart)
        before = crowd.ends["complete"]
        while crowd.ends["complete"] < before + 50:
            await asyncio.sleep(0.05)

    crowd = offer(router, restart)
    assert set(crowd.ends) <= {"complete", "error event"}  # those that had not started waited for the fleet
    assert crowd.ends["error event"] <= 12


def test_one_babbles_and_one_crawls(three: tuple[Router, list[Replica]]) -> None:
    router, replicas = three

    async def babble(_crowd: Crowd) -> None:
        replicas[0].fault("garbage")
        replicas[1].fault("stalls")
        await asyncio.sleep(3)
        replicas[0].fault("")
        replicas[1].fault("")
        await asyncio.sleep(2)

    crowd = offer(router, babble)
    assert set(crowd.ends) <= {"complete", "error event"}
    assert crowd.replicas["c"] > 0
