"""Probing a real server over its HTTP endpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.contract import Server
from qplan.measure.load.arrivals import Arrivals
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import Floats, Outcome, Request, Requests
from qplan.measure.load.run import run_load
from qplan.measure.load.validity import bottleneck
from qplan.measure.saturation.objective import Objective
from qplan.measure.saturation.probe import ProbeResult

_LOOK_S = 0.5
_LOOK_GROWTH = 1.15
_DRAIN_S = 60.0
_DRAIN_POLL_S = 0.25
_DRAINED = 2.0


class LoadProbe:
    """Offers rates to a server, and waits until it is idle again after each.

    Parameters
    ----------
    endpoint
        The server.
    objective
        What its answers are judged by.
    prompts
        What to send, in turn, on from probe to probe, so that a cache of prompts does not make later probes faster.
    arrivals, seed
        The stream of arrivals.
    timeout_s
        Longest time of a request.
    processes
        Client processes.
    server
        The engine, where we started it: its health is checked and its own count of requests tells when it is idle.
        Else it is taken as idle when a request alone gets its first token as fast as at first.
    on_requests
        Called with each probe's requests, to keep them.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        objective: Objective,
        prompts: Sequence[Prompt],
        *,
        arrivals: Arrivals | None = None,
        seed: int = 0,
        timeout_s: float = 120.0,
        processes: int = 1,
        server: Server | None = None,
        on_requests: Callable[[ProbeResult, Requests], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._objective = objective
        self._prompts = list(prompts)
        self._arrivals = arrivals or Arrivals()
        self._seed = seed
        self._timeout_s = timeout_s
        self._processes = processes
        self._server = server
        self._on_requests = on_requests
        self._sent = 0
        self._alone_s: float | None = None

    def guess_qps(self, requests: int = 3) -> float:
        """Return the rate at which the server answers one request after the other: a rate to start a search at."""
        answered_s = [self._alone().e2e_s for _ in range(requests)]
        return 1 / sorted(answered_s)[requests // 2]

    def run(self, rate_qps: float, requests: int, part: int, stop: Callable[[ProbeResult], bool]) -> ProbeResult:
        """Offer `rate_qps`; see :class:`~qplan.measure.saturation.probe.Probe`.

        Raises
        ------
        MeasurementError
            The server died, does not become idle again, or fails every request.
        """
        if self._server is None and self._alone_s is None:
            self._alone_s = min(self._alone().ttft_s for _ in range(3))
        begun_s = time.perf_counter()
        seed = int(np.random.SeedSequence([self._seed, part]).generate_state(1)[0])
        schedule_s = self._arrivals.schedule(rate_qps, count=requests, seed=seed)
        watch = _Watch(rate_qps, part, schedule_s, self._objective, self._burstiness, stop)
        seen = run_load(
            self._endpoint,
            schedule_s,
            self._next_prompts(),
            timeout_s=self._timeout_s,
            processes=self._processes,
            observer=watch,
        )
        self._sent += len(seen)
        _refuse_all_failed(seen)
        result = watch.result(seen, bottleneck(seen))
        self._drain()
        result = result.lasting(time.perf_counter() - begun_s)
        if self._on_requests is not None:
            self._on_requests(result, seen)
        return result

    @property
    def _burstiness(self) -> float:
        return self._arrivals.parameter if self._arrivals.kind == "gamma" else 1.0

    def _next_prompts(self) -> list[Prompt]:
        first = self._sent % len(self._prompts)
        return self._prompts[first:] + self._prompts[:first]

    def _alone(self) -> Request:
        """Send one request to the idle server."""
        seen = run_load(self._endpoint, np.zeros(1), self._next_prompts(), timeout_s=self._timeout_s)
        self._sent += 1
        _refuse_all_failed(seen)
        return seen[0]

    def _drain(self) -> None:
        """Wait until the server is idle, so that the next probe does not pay for this one."""
        deadline_s = time.perf_counter() + _DRAIN_S
        while time.perf_counter() < deadline_s:
            if self._server is None:
                if self._alone_s is None or self._alone().ttft_s < _DRAINED * self._alone_s + 0.01:
                    return
            else:
                self._server.check()
                state = self._server.state()
                if state.running is None or not (state.running or state.waiting):
                    return
            time.sleep(_DRAIN_POLL_S)
        raise MeasurementError(f"the server was still busy {_DRAIN_S:g} s after the load had ended")


class _Watch:
    """The running record of a probe: an observer of the load that asks, ever more rarely, whether to stop."""

    def __init__(
        self,
        rate_qps: float,
        part: int,
        schedule_s: Floats,
        objective: Objective,
        burstiness: float,
        stop: Callable[[ProbeResult], bool],
    ) -> None:
        self._rate_qps = rate_qps
        self._part = part
        self._schedule_s = schedule_s
        self._objective = objective
        self._burstiness = burstiness
        self._stop = stop
        self._severity = np.full((len(schedule_s), len(objective.criteria)), math.nan)
        self._ended_s = np.full(len(schedule_s), math.nan)
        self._begun_s = time.perf_counter()
        self._next_look_s = _LOOK_S
        self._stopped_s: float | None = None

    def finished(self, request: Request) -> None:
        self._severity[request.index] = self._objective.severity(request)
        if request.outcome is not Outcome.CANCELLED:
            self._ended_s[request.index] = request.end_s

    def stop(self) -> bool:
        now_s = time.perf_counter() - self._begun_s
        if self._stopped_s is None and now_s >= self._next_look_s:
            self._next_look_s = now_s * _LOOK_GROWTH
            if self._stop(self._so_far(now_s)):
                self._stopped_s = now_s
        return self._stopped_s is not None

    def result(self, requests: Requests, invalid: str | None) -> ProbeResult:
        """Sum up when all is over; the requests that were cancelled are known by now."""
        for request in requests:
            self.finished(request)
        end_s = self._stopped_s if self._stopped_s is not None else float(requests.end_s.max(initial=0.0))
        return self._so_far(end_s, invalid)

    def _so_far(self, now_s: float, invalid: str | None = None) -> ProbeResult:
        due = int(np.searchsorted(self._schedule_s, now_s))
        return ProbeResult.of(
            self._rate_qps,
            self._part,
            self._severity[:due],
            self._schedule_s[:due],
            self._ended_s[:due],
            now_s,
            burstiness=self._burstiness,
            invalid=invalid,
        )


def _refuse_all_failed(requests: Requests) -> None:
    """Raise where nothing succeeded: a dead address or a wrong key is no overload."""
    if len(requests) and requests.failed.all() and not (requests.outcome == Outcome.TIMEOUT).any():
        raise MeasurementError(f"every request failed: {requests.reason[0]}")
