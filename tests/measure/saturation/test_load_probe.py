"""Probing real servers over sockets: a server of known capacity, and ones that fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qplan.core.errors import MeasurementError
from qplan.core.slo import Slo
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.prompts import Prompt
from qplan.measure.saturation.load_probe import LoadProbe
from qplan.measure.saturation.objective import Objective
from qplan.measure.saturation.probe import ProbeResult
from qplan.measure.saturation.search import find_saturation
from tests.measure.fake_server import fake_server
from tests.measure.saturation.virtual_server import saturation_qps

SLOTS, SERVICE_S, WAIT_S = 4, 0.05, 0.05
OBJECTIVE = Objective.each([Slo.parse(f"p90:ttft={WAIT_S}s")])
PROMPTS = [Prompt(f"{word} b c", 3, 4) for word in ("a", "d", "e")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server(slots=SLOTS, service_s=SERVICE_S) as address:
        yield address


@pytest.mark.slow
def test_the_saturation_of_a_real_server_is_that_of_the_queue(url: str) -> None:
    probe = LoadProbe(Endpoint(url, "fake"), OBJECTIVE, PROMPTS, seed=1)
    found = find_saturation(probe, OBJECTIVE, start_qps=probe.guess_qps(), budget_s=12, precision=0.1)
    if found.reason is not None and found.reason.startswith("the client"):
        pytest.skip(f"this machine is too busy to offer load: {found.reason}")
    assert found.low_qps is not None
    assert found.high_qps is not None
    assert found.low_qps < saturation_qps(SLOTS, SERVICE_S, WAIT_S, 0.1, 300_000) < found.high_qps
    assert found.probe_s < 20


def test_an_overloaded_probe_fails_within_seconds_and_leaves_an_idle_server(url: str) -> None:
    probe = LoadProbe(Endpoint(url, "fake"), OBJECTIVE, PROMPTS)
    looks: list[ProbeResult] = []

    def stop(so_far: ProbeResult) -> bool:
        looks.append(so_far)
        return so_far.growing

    result = probe.run(3 * SLOTS / SERVICE_S, 20_000, 0, stop)
    assert result.growing
    assert result.duration_s < 20
    assert probe.guess_qps() > 0.5 / SERVICE_S


def test_the_same_part_sends_the_same_scaled_gaps(url: str) -> None:
    sent: list[list[float]] = []
    probe = LoadProbe(
        Endpoint(url, "fake"), OBJECTIVE, PROMPTS, on_requests=lambda _, seen: sent.append(list(seen.scheduled_s))
    )
    for rate, part in ((20.0, 0), (40.0, 0), (40.0, 1)):
        probe.run(rate, 15, part, lambda _: False)
    assert sent[0] == pytest.approx([2 * at_s for at_s in sent[1]])
    assert sent[1] != pytest.approx(sent[2])


@pytest.mark.parametrize("fault", ["401", "garbage", "closes"])
def test_a_server_that_only_fails_is_an_error_not_a_rate(fault: str) -> None:
    with fake_server(fault=fault) as address:
        probe = LoadProbe(Endpoint(address, "fake"), OBJECTIVE, PROMPTS)
        with pytest.raises(MeasurementError, match="every request failed"):
            find_saturation(probe, OBJECTIVE)


def test_a_dead_address_is_an_error() -> None:
    probe = LoadProbe(Endpoint("http://127.0.0.1:9", "fake"), OBJECTIVE, PROMPTS)
    with pytest.raises(MeasurementError, match="every request failed"):
        probe.guess_qps()
