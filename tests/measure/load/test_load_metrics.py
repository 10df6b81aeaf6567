"""Metrics against values worked out by hand, and intervals against their promise."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from qplan.core.slo import Slo
from qplan.measure.load.metrics import (
    Window,
    attainment,
    bootstrap,
    meets,
    observation_columns,
    steady_window,
    tokens_within,
)
from qplan.measure.load.requests import NOT_SAID, Outcome, Request, Requests


def request(index: int, at_s: float, ttft_s: float = 0.1, gap_s: float = 0.02, tokens: int = 6) -> Request:
    chunks = tuple(at_s + ttft_s + gap_s * place for place in range(tokens))
    return Request(index, at_s, at_s, chunks[-1] + 0.001, chunks, 32, tokens, tokens, Outcome.OK, "")


def failure(row: Request, outcome: Outcome = Outcome.FAILED) -> Request:
    return replace(row, chunk_s=(), output_tokens=NOT_SAID, outcome=outcome, reason="HTTP 500: out of memory")


STEADY = [request(index, 0.5 * index) for index in range(21)]  # two a second for ten seconds


def test_columns_are_those_of_the_schema_and_hold_the_truth() -> None:
    slos = [Slo("ttft", 0.2), Slo("tpot", 0.05)]
    columns = observation_columns(Requests.of(STEADY), window=Window(0.25, 10.25), slos=slos)
    schema = resources.files("qplan.profiles").joinpath("schema.csv").read_text()
    rows = {row["name"]: row for row in csv.DictReader(schema.splitlines())}
    assert set(columns) <= set(rows)
    assert not any(rows[name]["identity"] == "yes" for name in columns)
    assert columns["status"] == "ok"
    for name, expected in {
        "ttft_p50_s": 0.1,
        "tpot_p99_s": 0.02,
        "itl_mean_s": 0.02,
        "e2e_p90_s": 0.2,
        "ttft_scheduled_mean_s": 0.1,
        "ttft_p90_low_s": 0.1,
        "tpot_mean_high_s": 0.02,
        "slo_attainment": 1.0,
        "failed_requests": 0,
        "schedule_lag_p99_s": 0.0,
    }.items():
        assert columns[name] == pytest.approx(expected), name
    assert columns["requests"] == 20  # all but the first
    assert columns["duration_s"] == pytest.approx(10)
    assert columns["goodput_qps"] == pytest.approx(2)
    assert columns["achieved_qps"] == pytest.approx(2)
    assert columns["output_tokens_per_s"] == pytest.approx(12)


def test_failures_are_misses_not_survivors() -> None:
    slos = [Slo("ttft", 0.2)]
    rows = [failure(row, outcome) for row, outcome in zip(STEADY, [*Outcome][1:5] * 2, strict=False)] + STEADY[8:]
    requests = Requests.of(rows)
    assert attainment(requests, slos) == pytest.approx(13 / 21)
    columns = observation_columns(requests, window=Window(0, 11), slos=slos)
    assert columns["failed_requests"] == 8
    assert columns["ttft_p50_s"] == pytest.approx(0.1)
    assert columns["goodput_qps"] == pytest.approx(13 / 11)
    nothing = observation_columns(Requests.of([failure(row) for row in STEADY]), slos=slos)
    assert nothing["status"] == "failed"
    assert nothing["reason"] == "no request succeeded: HTTP 500: out of memory"
    assert nothing["slo_attainment"] == 0
    assert nothing["ttft_p50_s"] is None
    assert observation_columns(Requests.of([]), slos=slos)["slo_attainment"] is None


def test_every_slo_has_to_be_met_by_the_same_request() -> None:
    rows = [request(0, 0.0), request(1, 1.0, ttft_s=0.5), request(2, 2.0, gap_s=0.2), request(3, 3.0, tokens=1)]
    requests = Requests.of(rows)
    assert meets(requests, [Slo("ttft", 0.2), Slo("tpot", 0.1)]).tolist() == [True, False, False, True]
    assert meets(requests, [Slo("itl", 0.1)]).tolist() == [True, True, False, True]
    assert meets(requests, [Slo("e2e", 0.3)]).tolist() == [True, False, False, True]
    unknown = Requests.of([replace(row, output_tokens=NOT_SAID) for row in rows])
    assert not meets(unknown, [Slo("tpot", 0.1)]).any()
    assert tokens_within(unknown, Window(0, 9)) is None


def test_cancelled_requests_count_only_once_they_are_late() -> None:
    slos = [Slo("ttft", 0.2)]
    young = replace(failure(request(1, 1.0), Outcome.CANCELLED), end_s=1.1)
    old = replace(failure(request(2, 2.0), Outcome.CANCELLED), end_s=2.5)
    assert attainment(Requests.of([request(0, 0.0), young]), slos) == 1.0
    assert attainment(Requests.of([request(0, 0.0), young, old]), slos) == 0.5
    assert not Requests.of([young, old]).failed.any()


def test_tokens_are_those_that_arrived_in_the_window() -> None:
    # Twelve tokens in six chunks at 0.10, 0.12 ... 0.20: two tokens a chunk.
    requests = Requests.of([replace(request(0, 0.0), output_tokens=12)])
    tokens = tokens_within(requests, Window(0.11, 0.17))
    assert tokens is not None
    assert (tokens.input, tokens.output) == (0, 6)
    whole = tokens_within(requests, Window(0.0, 1.0))
    assert whole is not None
    assert (whole.input, whole.output) == (32, 12)


def test_warm_up_is_one_residence_time_unless_told() -> None:
    slow = Requests.of([request(index, 0.5 * index, ttft_s=2.0) for index in range(41)])
    assert steady_window(slow).start_s == pytest.approx(2.101, abs=1e-6)
    assert steady_window(slow, warm_up_s=5.0).start_s == 5.0
    endless = Requests.of([request(index, 0.5 * index, ttft_s=50.0) for index in range(41)])
    assert steady_window(endless).start_s == pytest.approx(6.0)


def test_a_run_within_its_warm_up_measures_nothing_and_says_so() -> None:
    early = Requests.of([request(0, 0.0), request(1, 0.5)])
    window = steady_window(early, warm_up_s=2.0)
    columns = observation_columns(early, window=window)
    assert (columns["duration_s"], columns["requests"]) == (0.0, 0)
    assert columns["status"] == "failed"
    assert "after the warm-up" in str(columns["reason"])
    assert columns["achieved_qps"] is None


def test_the_interval_covers_what_it_promises_also_when_requests_are_alike() -> None:
    random = np.random.default_rng(1)
    plain = queued = 0
    for seed in range(60):
        noise = random.normal(0, 1, 400)
        low, high = bootstrap(noise, seed=seed)
        plain += low <= 0 <= high
        chain = np.zeros(400)
        for place in range(1, 400):
            chain[place] = 0.6 * chain[place - 1] + noise[place]
        low, high = bootstrap(chain, seed=seed)
        queued += low <= 0 <= high
    assert plain / 60 > 0.85
    assert queued / 60 > 0.75  # one by one it would be 0.66


def test_the_bootstrap_is_reproducible_and_orders_its_ends() -> None:
    sample = np.random.default_rng(0).exponential(1, 5000)
    low, high = bootstrap(sample, 90, seed=4)
    assert (low, high) == bootstrap(sample, 90, seed=4)
    assert low < np.percentile(sample, 90) < high
