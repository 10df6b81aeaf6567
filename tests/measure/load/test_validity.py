"""A run is invalid when the client was the bottleneck, and only then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qplan.measure.load.requests import Outcome, Request, Requests
from qplan.measure.load.validity import bottleneck


def run(lag_s: float = 0.001, ttft_s: float = 0.1, count: int = 200, late: int = 200, cpu_s: float = 1.0) -> Requests:
    rows = []
    for index in range(count):
        due = index * 0.05
        sent = due + (lag_s if index < late else 0.0)
        chunks = (sent + ttft_s, sent + ttft_s + 0.1)
        rows.append(Request(index, due, sent, chunks[-1], chunks, 8, 2, 2, Outcome.OK, ""))
    return Requests.of(rows, cpu_s=cpu_s)


def test_a_punctual_client_is_fine_however_slow_the_server() -> None:
    assert bottleneck(run()) is None
    assert bottleneck(run(ttft_s=60.0)) is None


def test_sending_late_is_the_clients_fault() -> None:
    assert "sent late" in (bottleneck(run(lag_s=0.05)) or "")
    assert bottleneck(run(lag_s=0.05, ttft_s=2.0)) is None  # small beside what is measured


def test_one_hiccup_is_not_a_bottleneck() -> None:
    assert bottleneck(run(lag_s=0.5, late=1, count=20)) is None
    assert bottleneck(run(lag_s=0.5, late=2, count=20)) is not None


def test_sending_at_a_lower_rate_is_the_clients_fault() -> None:
    requests = run(ttft_s=100.0)
    stretched = replace(requests, sent_s=requests.scheduled_s * 1.05)
    assert "of the rate asked for" in (bottleneck(stretched) or "")


def test_using_all_of_the_cpu_is_the_clients_fault() -> None:
    assert "CPU" in (bottleneck(run(cpu_s=9.9)) or "")
    assert bottleneck(replace(run(cpu_s=9.9), processes=2)) is None


def test_running_out_of_files_or_ports_is_the_clients_fault() -> None:
    requests = run()
    outcome = requests.outcome.copy()
    outcome[:3] = Outcome.FAILED
    reason = ("client: Too many open files",) * 3 + requests.reason[3:]
    assert bottleneck(replace(requests, outcome=outcome, reason=reason)) == (
        "Too many open files on the client's machine (3 requests)"
    )


def test_nothing_sent_is_nobodys_fault() -> None:
    assert bottleneck(Requests.of([])) is None
    assert np.size(Requests.of([]).ttft_s) == 0
