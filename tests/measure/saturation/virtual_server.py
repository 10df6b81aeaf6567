"""A server of known capacity in virtual time: `slots` requests are served at once, each for `service_s`, FIFO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qplan.measure.load.requests import Floats
from qplan.measure.saturation.probe import ProbeResult


def waits_s(arrivals_s: Floats, slots: int, service_s: float) -> Floats:
    """Return each request's wait for a slot.

    With one service time requests leave in the order they came, so request ``i`` starts when ``i - slots`` leaves:
    every `slots`-th request is a Lindley recursion of its own, solved by a running maximum.
    """
    waits = np.empty_like(arrivals_s)
    for first in range(min(slots, len(arrivals_s))):
        own = arrivals_s[first::slots]
        served = np.arange(len(own)) * service_s
        waits[first::slots] = np.maximum.accumulate(own - served) + served - own
    return waits


def saturation_qps(
    slots: int, service_s: float, threshold_s: float, allowed: float, requests: int = 2_000_000
) -> float:
    """Return the rate at which the share `allowed` of waits is over the threshold, from a very long run of its own."""
    unit = np.cumsum(np.random.default_rng(20_251).exponential(1.0, requests))
    low, high = 0.02 * slots / service_s, slots / service_s
    for _ in range(18):
        rate = (low * high) ** 0.5
        missed = waits_s(unit / rate, slots, service_s)[requests // 20 :] > threshold_s
        low, high = (low, rate) if missed.mean() > allowed else (rate, high)
    return float((low * high) ** 0.5)


@dataclass
class VirtualServer:
    """A probe of the virtual server; severity is the wait over the threshold, one column for each threshold."""

    slots: int
    service_s: float
    thresholds_s: tuple[float, ...]
    seed: int
    overhead_s: float = 0.0

    def run(self, rate_qps: float, requests: int, part: int, stop: Callable[[ProbeResult], bool]) -> ProbeResult:
        gaps = np.random.default_rng([self.seed, part]).exponential(1.0, requests)
        arrivals_s = np.cumsum(gaps) / rate_qps
        waited_s = waits_s(arrivals_s, self.slots, self.service_s)
        ended_s = arrivals_s + waited_s + self.service_s
        severity = waited_s[:, None] / np.array(self.thresholds_s)
        seen = 20
        while True:
            seen = min(seen, requests)
            # The look is taken when the request is over, as a client learns of it.
            now_s = float(ended_s[seen - 1])
            arrived = int(np.searchsorted(arrivals_s, now_s))
            open_ = np.where((ended_s <= now_s)[:arrived, None], severity[:arrived], np.nan)
            result = ProbeResult.of(rate_qps, part, open_, arrivals_s[:arrived], ended_s[:arrived], now_s)
            if seen == requests or stop(result):
                return result
            seen = max(seen + 10, int(1.4 * seen))
