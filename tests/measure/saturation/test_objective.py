"""SLOs become misses: each at its own percentile or all at once, with failures counted and cancellations left open."""

from __future__ import annotations

import math

import pytest

from qplan.core.errors import InputError, MeasurementError
from qplan.core.slo import Slo
from qplan.measure.load.requests import NOT_SAID, Outcome, Request
from qplan.measure.saturation.objective import Objective


def request(
    outcome: Outcome = Outcome.OK, chunks_s: tuple[float, ...] = (0.2, 0.3, 0.5), tokens: int = 3, end_s: float = 0.5
) -> Request:
    return Request(0, 0.0, 0.0, end_s, chunks_s, 8, tokens, 3, outcome, "")


def test_each_slo_has_its_own_percentile_and_severity() -> None:
    objective = Objective.each(Slo.parse_all(["p99:ttft=0.4s,p90:tpot=100ms,e2e=1s"]), percentile=50)
    assert objective.allowed == pytest.approx((0.01, 0.1, 0.5))
    assert objective.severity(request()) == pytest.approx((0.5, 1.5, 0.5))
    assert objective.patience_s == 1.0


def test_jointly_a_request_is_as_late_as_its_latest_metric() -> None:
    objective = Objective.jointly(Slo.parse_all(["ttft=0.4s,tpot=100ms,itl=400ms"]), 0.95)
    assert objective.allowed == pytest.approx((0.05,))
    assert objective.severity(request()) == pytest.approx((1.5,))


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.TRUNCATED, Outcome.EMPTY])
def test_what_did_not_come_back_whole_misses_every_slo(outcome: Outcome) -> None:
    objective = Objective.each(Slo.parse_all(["p99:ttft=9s,p99:e2e=9s"]))
    assert objective.severity(request(outcome)) == (math.inf, math.inf)


def test_a_cancelled_request_misses_only_what_it_was_already_too_late_for() -> None:
    ttft, tpot, e2e = (Objective.each([Slo.parse(text)]) for text in ("p99:ttft=1s", "p99:tpot=1s", "p99:e2e=5s"))
    waiting = request(Outcome.CANCELLED, (), NOT_SAID, end_s=1.5)
    assert ttft.severity(waiting) == (1.5,)
    assert math.isnan(tpot.severity(waiting)[0])
    assert math.isnan(e2e.severity(waiting)[0])
    young = request(Outcome.CANCELLED, (), NOT_SAID, end_s=0.5)
    assert math.isnan(ttft.severity(young)[0])
    late_start = request(Outcome.CANCELLED, (2.0,), NOT_SAID, end_s=2.1)
    assert ttft.severity(late_start) == (2.0,)


def test_a_single_token_has_no_gaps_to_be_slow_in() -> None:
    objective = Objective.each(Slo.parse_all(["p99:tpot=1ms,p99:itl=1ms"]))
    assert objective.severity(request(chunks_s=(0.2,), tokens=1)) == (0.0, 0.0)


def test_tpot_is_not_guessed_where_the_server_counts_no_tokens() -> None:
    objective = Objective.each([Slo.parse("p99:tpot=50ms")])
    with pytest.raises(MeasurementError, match="counts no tokens"):
        objective.severity(request(tokens=NOT_SAID))


def test_no_slo_and_impossible_attainments_are_refused() -> None:
    with pytest.raises(InputError, match="no SLO"):
        Objective.each([])
    with pytest.raises(InputError, match="no SLO"):
        Objective.jointly([])
    with pytest.raises(InputError, match=r"attainment 1; expected a share between 0 and 1"):
        Objective.jointly([Slo.parse("ttft=1s")], 1.0)
