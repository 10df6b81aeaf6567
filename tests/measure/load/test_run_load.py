"""The open loop as a whole: on time, observed, stopped, from several processes, and gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from scipy import stats

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.arrivals import Arrivals
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import Outcome, Request
from qplan.measure.load.run import run_load
from tests.measure.fake_server import fake_server

PROMPTS = [Prompt("one two three", 3, 4), Prompt("one two", 2, 2)]


class StopAfter:
    """Stops the run after a number of requests; keeps what it saw."""

    def __init__(self, count: float = float("inf")) -> None:
        self.count = count
        self.seen: list[Request] = []

    def finished(self, request: Request) -> None:
        self.seen.append(request)

    def stop(self) -> bool:
        return len(self.seen) >= self.count


@pytest.mark.parametrize("processes", [1, 2])
def test_every_request_is_sent_seen_and_kept(url: str, processes: int) -> None:
    schedule = Arrivals().schedule(40, count=30, seed=1)
    observer = StopAfter()
    before = time.perf_counter()
    requests = run_load(Endpoint(url, "fake"), schedule, PROMPTS, timeout_s=10, processes=processes, observer=observer)
    assert requests.index.tolist() == list(range(30))
    assert requests.ok.all()
    assert requests.input_tokens.tolist() == [3, 2] * 15
    assert requests.output_tokens.tolist() == [4, 2] * 15
    np.testing.assert_allclose(requests.scheduled_s, schedule, atol=1e-6)
    assert (requests.lag_s > -1e-5).all()
    assert before < requests.origin_s < time.perf_counter()
    assert requests.processes == processes
    assert requests.cpu_s > 0
    assert sorted(request.index for request in observer.seen) == list(range(30))
    for request in observer.seen:
        assert request.ttft_s == pytest.approx(requests[request.index].ttft_s, abs=2e-6)


@pytest.mark.parametrize("processes", [1, 2])
def test_stopping_cancels_what_is_under_way_and_sends_nothing_more(processes: int) -> None:
    with fake_server(slots=1, service_s=0.05) as url:
        observer = StopAfter(3)
        before = time.perf_counter()
        requests = run_load(
            Endpoint(url, "fake"), np.arange(2000) / 200, PROMPTS, timeout_s=60, processes=processes, observer=observer
        )
        assert time.perf_counter() - before < 60  # of a hundred seconds of service
    assert 3 <= requests.ok.sum() < len(requests) < 2000
    assert set(requests.outcome.tolist()) == {Outcome.OK, Outcome.CANCELLED}
    assert not requests.failed.any()
    assert len(observer.seen) == len(requests)


def test_arrivals_stay_poisson_over_four_processes(url: str) -> None:
    """What was really sent, by four processes on a busy machine: the schedule's statistics within its lag."""
    rate = 100.0
    schedule = Arrivals().schedule(rate, count=400, seed=11)
    requests = run_load(Endpoint(url, "fake"), schedule, [Prompt("a", 1, 1)], timeout_s=20, processes=4)
    assert requests.ok.all()
    assert requests.processes == 4
    sent = np.sort(requests.sent_s)
    assert stats.kstest(np.diff(requests.scheduled_s), "expon", args=(0, 1 / rate)).pvalue > 0.01
    # Counts in long bins are hardly moved by a lag of milliseconds: 1 +- what 400 arrivals can tell.
    bins = np.bincount((sent / 0.25).astype(int))[:-1]
    assert bins.var() / bins.mean() == pytest.approx(1, abs=0.6)
    drawn = np.bincount((schedule / 0.25).astype(int))[:-1]
    assert abs(np.median(requests.lag_s)) < 0.05
    assert np.abs(bins[: len(drawn)] - drawn[: len(bins)]).mean() < 4


def test_a_schedule_that_is_late_already_still_lets_requests_go_on(url: str) -> None:
    requests = run_load(Endpoint(url, "fake"), np.zeros(300), PROMPTS, timeout_s=20)
    assert requests.ok.all()
    assert len(run_load(Endpoint(url, "fake"), np.zeros(0), [], timeout_s=1)) == 0


def test_an_observers_error_ends_the_run(url: str) -> None:
    class Broken(StopAfter):
        def finished(self, request: Request) -> None:
            raise RuntimeError("observer")

    with pytest.raises(RuntimeError, match="observer"):
        run_load(Endpoint(url, "fake"), np.zeros(3), PROMPTS, timeout_s=10, observer=Broken())


def test_bad_input_is_one_clear_line(url: str) -> None:
    for prompts, timeout, processes in [([], 1.0, 1), (PROMPTS, 0.0, 1), (PROMPTS, 1.0, 0)]:
        with pytest.raises(InputError):
            run_load(Endpoint(url, "fake"), np.zeros(1), prompts, timeout_s=timeout, processes=processes)
    ids = [Prompt((1, 2), 2, 1)]
    with pytest.raises(MeasurementError, match="token ids"):
        run_load(Endpoint(url, "fake", "chat"), np.zeros(2), ids, timeout_s=9, processes=2)


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


PARENT = """
import sys, numpy as np
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.run import run_load
print("started", flush=True)
run_load(Endpoint(sys.argv[1], "fake"), np.arange(3000) / 20, [Prompt("a", 1, 2)], timeout_s=9, processes=2)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(url: str, sign: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.getcwd()
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    deadline = time.monotonic() + 60
    while len(workers := _children(parent.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    parent.send_signal(sign)
    _, said = parent.communicate(timeout=60)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert len(gone) == 2
    if sign is signal.SIGINT:
        assert said.rstrip().endswith(b"KeyboardInterrupt")


def test_a_worker_that_dies_is_an_error_not_a_short_record(url: str) -> None:
    class Killer(StopAfter):
        def finished(self, request: Request) -> None:
            for worker in _children(os.getpid()):
                if "qplan.measure.load.worker" in " ".join(worker.cmdline()):
                    worker.kill()

    with pytest.raises(MeasurementError, match="load process died"):
        run_load(Endpoint(url, "fake"), np.arange(200) / 20, PROMPTS, timeout_s=9, processes=2, observer=Killer())
