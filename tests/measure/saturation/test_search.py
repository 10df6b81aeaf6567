"""The search against a queue whose saturation rate is known, in virtual time."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.measure.saturation.objective import Objective
from qplan.measure.saturation.probe import ProbeResult
from qplan.measure.saturation.search import Saturation, find_saturation
from tests.measure.saturation.virtual_server import VirtualServer, saturation_qps

SLOTS, SERVICE_S, WAIT_S = 4, 0.5, 0.5
P90 = Objective.each([Slo.parse(f"p90:ttft={WAIT_S}s")])


def search(seed: int, **options: float) -> Saturation:
    server = VirtualServer(SLOTS, SERVICE_S, (WAIT_S,), seed)
    return find_saturation(server, P90, **{"start_qps": 1 / SERVICE_S, "precision": 0.1, **options})  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_95_of_100_searches() -> None:
    truth = saturation_qps(SLOTS, SERVICE_S, WAIT_S, 0.1)
    held, errors = 0, []
    for seed in range(100):
        found = search(seed, precision=0.12)
        assert found.low_qps is not None
        assert found.high_qps is not None
        assert found.qps is not None
        assert found.reason is None
        held += found.low_qps <= truth <= found.high_qps
        errors.append(abs(found.qps / truth - 1))
    assert held >= 95
    assert statistics.median(errors) < 0.03


def test_a_small_budget_gives_a_wider_interval_that_still_holds_the_truth() -> None:
    truth = saturation_qps(SLOTS, SERVICE_S, WAIT_S, 0.1, 500_000)
    held = 0
    for seed in range(20):
        found = search(seed, budget_s=90.0)
        assert found.reason is not None
        assert "budget" in found.reason
        assert found.probe_s < 110
        held += (found.low_qps or 0) <= truth <= (found.high_qps or float("inf"))
    assert held >= 18


def test_the_guess_to_start_at_does_not_matter() -> None:
    truth = saturation_qps(SLOTS, SERVICE_S, WAIT_S, 0.1, 500_000)
    for start_qps in (0.05, 300.0):
        found = search(3, start_qps=start_qps)
        assert found.qps == pytest.approx(truth, rel=0.1)


def test_the_first_slo_to_break_decides() -> None:
    loose_and_tight = Objective.each([Slo("ttft", 5.0, 50.0), Slo("ttft", WAIT_S, 90.0)])
    found = find_saturation(VirtualServer(SLOTS, SERVICE_S, (5.0, WAIT_S), 1), loose_and_tight, precision=0.1)
    assert found.qps == pytest.approx(saturation_qps(SLOTS, SERVICE_S, WAIT_S, 0.1, 500_000), rel=0.1)


def test_a_search_that_was_interrupted_resumes_without_repeating_a_probe() -> None:
    journal: list[str] = []
    server = VirtualServer(SLOTS, SERVICE_S, (WAIT_S,), 7)
    whole = find_saturation(server, P90, precision=0.1, on_probe=lambda result: journal.append(result.to_json()))
    kept = [ProbeResult.from_json(line) for line in journal[: len(journal) // 2]]
    assert kept == list(whole.probes[: len(kept)])
    new: list[ProbeResult] = []
    resumed = find_saturation(server, P90, precision=0.1, earlier=kept, on_probe=new.append)
    assert resumed == whole
    assert len(new) == len(whole.probes) - len(kept)


def test_probes_of_another_search_are_not_taken() -> None:
    other = search(1, start_qps=2.7).probes
    server = VirtualServer(SLOTS, SERVICE_S, (WAIT_S,), 1)
    found = find_saturation(server, P90, start_qps=2.0, precision=0.1, earlier=other)
    assert found.probes == search(1, start_qps=2.0).probes


def test_a_server_that_misses_at_any_rate_gives_an_upper_bound_and_the_reason() -> None:
    found = search(1, low_qps=9.0, high_qps=50.0, start_qps=20.0)
    assert (found.qps, found.low_qps, found.high_qps) == (None, None, 9.0)
    assert found.reason is not None
    assert "even at 9 req/s" in found.reason


def test_a_server_that_never_saturates_gives_a_lower_bound_and_the_reason() -> None:
    found = search(1, low_qps=0.5, high_qps=4.0)
    assert (found.qps, found.low_qps, found.high_qps) == (None, 4.0, None)
    assert found.reason is not None
    assert "hold even at 4 req/s" in found.reason


class SlowClient(VirtualServer):
    """A client that sends no more than three requests a second."""

    def run(self, rate_qps: float, requests: int, part: int, stop: Callable[[ProbeResult], bool]) -> ProbeResult:
        result = super().run(rate_qps, requests, part, stop)
        if rate_qps <= 3:
            return result
        return ProbeResult.from_json(result.to_json().replace('"invalid":null', '"invalid":"the client sent late"'))


def test_a_client_that_cannot_keep_up_gives_a_lower_bound_and_says_so() -> None:
    found = find_saturation(SlowClient(SLOTS, SERVICE_S, (WAIT_S,), 1), P90, start_qps=1.0, precision=0.1)
    assert (found.qps, found.low_qps, found.high_qps) == (None, 2.0, None)
    assert found.reason == "the client sent late"
    assert sum(probe.invalid is not None for probe in found.probes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_qps": 2.0, "high_qps": 1.0}, "0 < lowest < highest"),
        ({"precision": 0.0}, "precision 0"),
        ({"confidence": 1.0}, "confidence 1"),
        ({"budget_s": 0.0}, "budget 0 s"),
    ],
)
def test_impossible_asks_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(1, **options)
