"""The circuit of a replica."""

from __future__ import annotations

from qplan.router.breaker import Breaker, Circuit


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(3):
        assert breaker.admits(0.0)
        breaker.begin()
        breaker.fail(0.0)
    return breaker


def test_three_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    breaker.fail(0.0)
    breaker.fail(0.0)
    breaker.succeed()
    breaker.fail(0.0)
    breaker.fail(0.0)
    assert breaker.admits(0.0)
    breaker.fail(0.0)
    assert breaker.state is Circuit.OPEN
    assert not breaker.admits(0.5)


def test_one_request_is_on_trial() -> None:
    breaker = opened()
    assert breaker.admits(1.0)
    breaker.begin()
    assert not breaker.admits(1.0)
    breaker.succeed()
    assert breaker.state is Circuit.CLOSED
    assert breaker.admits(1.0)


def test_the_pause_doubles_with_every_failed_trial_up_to_30_s() -> None:
    breaker, now_s, pauses = opened(), 0.0, []
    for _ in range(8):
        began_s = now_s
        while not breaker.admits(now_s):
            now_s += 0.25
        pauses.append(now_s - began_s)
        breaker.begin()
        breaker.fail(now_s)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_trial_that_says_nothing_makes_room_for_another() -> None:
    breaker = opened()
    assert breaker.admits(1.0)
    breaker.begin()
    breaker.forget()
    assert breaker.admits(1.0)


def test_one_that_is_gone_stays_so_until_it_is_there_again() -> None:
    breaker = Breaker()
    breaker.trip()
    breaker.succeed()  # an answer that was on its way
    assert not breaker.admits(1e9)
    breaker.mend()
    assert breaker.admits(0.0)
    breaker.fail(0.0)  # on its last chance
    assert not breaker.admits(0.0)


def test_answering_checks_does_not_close_what_failing_requests_opened() -> None:
    breaker = opened()
    breaker.mend()
    assert not breaker.admits(0.5)
