"""Replicas that the router puts to sleep and wakes, by the real process: nothing is sent to one that is not awake."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from qplan.core.policy import Policy
from tests.router.crowd import Crowd
from tests.router.live import Replica, Router, ask, fleet, get, make_policy, wait_for

LIMITS = "limits: {health: 100ms, wait: 20s, drain: 2s}\n"


def policy(hold_s: float = 0.5) -> Policy:
    """One replica is enough up to 1000 requests/s, and two beyond; requests that wait wake one earlier."""
    one = make_policy()
    group = replace(one.groups[0], count=2, max_sequences=4, wake_s=1.0)
    few, many = (replace(one.levels[0], load_qps=qps, awake=(count,)) for qps, count in ((1000.0, 1), (2000.0, 2)))
    return replace(one, groups=(group,), levels=(few, many), hold_s=hold_s)


def replicas_file(replicas: Sequence[Replica], sleep: str = "sleep: vllm", in_flight: int = 4) -> str:
    lines = [f"  - {{name: {one.name}, url: '{one.url}', in_flight: {in_flight}, {sleep}}}\n" for one in replicas]
    return "replicas:\n" + "".join(lines) + LIMITS


def states(router: Router) -> list[str]:
    return list(router.health()["replicas"].values())


def asked(router: Router) -> None:
    assert ask(router.url, stream=True)[0] == 200


def settled(router: Router, *wanted: str) -> None:
    """Wait until the replicas are in these states, with a request now and then: the load is seen from what comes."""

    def there() -> bool:
        asked(router)
        return states(router) == list(wanted)

    wait_for(there, 20)


def load(router: Router, clients: int, until_of: str) -> Crowd:
    """Offer load until a replica has answered some of it."""
    crowd = Crowd(router.url, clients)

    async def go_on() -> None:
        while not crowd.replicas[until_of]:
            await asyncio.sleep(0.1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(crowd.run(seconds=60, requests=10**6, during=go_on))
    return crowd


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_few_requests_let_one_sleep_and_a_queue_wakes_it(tmp_path: Path, processes: int) -> None:
    both = [Replica(name, itl_s=0.01, ttft_s=0.05) for name in ("a", "b")]
    with fleet(tmp_path, both, processes=processes, policy=policy()) as router:
        router.replicas.write_text(replicas_file(both))
        settled(router, "up", "asleep")
        assert [one.seen()["asleep"] for one in both] == [False, True]
        assert router.health()["status"] == "ok"
        crowd = load(router, 16, until_of="b")  # four at once have room where one is awake
        assert set(crowd.ends) == {"complete"}
        wait_for(lambda: ("wake", "done") in {(one["order"], one["outcome"]) for one in router.events("order")})
        assert not [one for one in both if one.seen()["asked_asleep"] or one.seen()["cut_short"]]
        assert not router.events("bug")
        found = router.metrics()
        assert found['qplan_router_sleep_orders_total{replica="b",group="g",order="wake",outcome="done"}'] >= 1


@pytest.mark.slow
def test_a_router_that_starts_learns_who_sleeps_and_one_killed_asleep_is_down(tmp_path: Path) -> None:
    both = [Replica(name) for name in ("a", "b")]
    get(f"{both[1].url}/sleep?level=1", b"")
    router = Router(tmp_path, policy(hold_s=60), replicas_file(both))
    try:
        assert states(router) == ["up", "asleep"]
        asked(router)
        router.process.send_signal(signal.SIGKILL)
        router.stop()
        router = Router(tmp_path, policy(hold_s=60), replicas_file(both))
        assert states(router) == ["up", "asleep"]  # it takes no part in when the router dies
        both[1].process.kill()
        wait_for(lambda: states(router) == ["up", "down"])
        both[1].restart()
        wait_for(lambda: states(router) == ["up", "up"])
        both[0].process.kill()
        wait_for(lambda: states(router) == ["down", "up"])
        asked(router)
    finally:
        router.stop()
        for one in both:
            one.kill()


@pytest.mark.slow
def test_one_that_dies_while_it_drains_or_wakes_costs_nobody_a_request(tmp_path: Path) -> None:
    both = [Replica(name, ttft_s=0.01) for name in ("a", "b")]
    with fleet(tmp_path, both, policy=policy()) as router:
        router.replicas.write_text(replicas_file(both))
        settled(router, "up", "asleep")
        crowd = Crowd(router.url, 12)

        async def kill() -> None:
            await asyncio.sleep(0.3)
            both[1].process.kill()
            await asyncio.sleep(2)
            await asyncio.to_thread(both[1].restart)
            await asyncio.sleep(3)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(crowd.run(seconds=60, requests=10**6, during=kill))
        assert set(crowd.ends) <= {"complete", "error event"}
        assert sum(router.outcomes().values()) >= crowd.sent
        assert not [one for one in both if one.seen()["asked_asleep"]]
        assert not router.events("bug")


def test_commands_stop_and_start_a_replica(tmp_path: Path) -> None:
    """Of a replica that cannot be asked silence means sleep, and health that it has woken."""
    one, other = Replica("a"), Replica("b")
    script = tmp_path / "order.py"
    script.write_text("import os, signal, sys\nos.kill(int(sys.argv[1]), getattr(signal, sys.argv[2]))\n")
    orders = (
        f"sleep: '{sys.executable} {script} {other.process.pid} SIGSTOP', "
        f"wake: '{sys.executable} {script} {other.process.pid} SIGCONT'"
    )
    text = f"replicas:\n- {{name: a, url: '{one.url}'}}\n- {{name: b, url: '{other.url}', {orders}}}\n{LIMITS}"
    router = Router(tmp_path, policy(), text)
    try:
        settled(router, "up", "asleep")
        status = Path(f"/proc/{other.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert status == "T"
        os.kill(one.process.pid, signal.SIGKILL)
        wait_for(lambda: states(router) == ["down", "up"], 20)  # wanted now, as the other is gone
        asked(router)
        orders = wait_for(lambda: len(found := router.events("order")) == 2 and found)  # the log is written in pieces
        assert [event["outcome"] for event in orders] == ["done", "done"]
    finally:
        router.stop()
        other.thaw()
        one.kill()
        other.kill()


@pytest.mark.slow
def test_an_order_that_fails_leaves_the_replica_serving(tmp_path: Path) -> None:
    both = [Replica(name) for name in ("a", "b")]
    orders = f"sleep: '{both[0].url}/nowhere', wake: '{both[0].url}/nowhere'"
    with fleet(tmp_path, both, policy=policy()) as router:
        router.replicas.write_text(replicas_file(both, orders))

        def failures() -> list[dict[str, Any]]:
            asked(router)
            return router.events("order")

        failed = wait_for(failures, 20)
        assert (failed[0]["outcome"], failed[0]["reason"]) == ("failed", "status 404")
        wait_for(lambda: states(router) == ["up", "up"])
