"""What a probe is: a rate offered for a while, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from qplan.measure.load.requests import Floats
from qplan.measure.saturation.sequential import decorrelation
from qplan.measure.saturation.stationarity import queue_grows

WARM_UP = 0.1
"""Share of a probe that is not counted."""


_TREND = 4


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe saw, also while it goes on.

    Attributes
    ----------
    rate_qps
        Rate offered.
    part
        Which stretch of the stream of arrivals was offered.
    duration_s
        Time that the probe took.
    requests
        Requests, in order of arrival, up to the first whose fate is open.
    misses
        For each criterion the positions, ascending from 0, of the requests that missed it.
    decorrelation
        For each criterion how many successive requests tell as much as one, from the order of latencies.
    growing
        Whether the queue grew beyond doubt, so that no steady state exists at this rate.
    invalid
        Why the probe says nothing of the server, such as a client that could not keep up; ``None`` if it does.
    """

    rate_qps: float
    part: int
    duration_s: float
    requests: int
    misses: tuple[tuple[int, ...], ...]
    decorrelation: tuple[float, ...]
    growing: bool = False
    invalid: str | None = None

    @classmethod
    def of(
        cls,
        rate_qps: float,
        part: int,
        severity: Floats,
        scheduled_s: Floats,
        ended_s: Floats,
        now_s: float,
        *,
        burstiness: float = 1.0,
        invalid: str | None = None,
    ) -> ProbeResult:
        """Sum up what is known at `now_s`.

        Parameters
        ----------
        rate_qps, part
            What was offered.
        severity
            Latencies over their thresholds, NaN while open, shape ``(n, criteria)``, in order of arrival.
        scheduled_s, ended_s
            When each was due and over, NaN while in flight, shape ``(n,)``.
        now_s
            Seconds since the start of the probe.
        burstiness
            Coefficient of variation of the gaps between arrivals.
        invalid
            As the attribute.
        """
        is_open = np.isnan(severity).any(axis=1)
        known = severity[: int(is_open.argmax()) if is_open.any() else len(severity)]
        return cls(
            rate_qps,
            part,
            now_s,
            len(known),
            tuple(tuple(np.flatnonzero(column > 1).tolist()) for column in known.T),
            tuple(_rank_decorrelation(column[int(WARM_UP * len(column)) :]) for column in known.T),
            queue_grows(scheduled_s, ended_s, now_s, burstiness=burstiness),
            invalid,
        )

    def missed(self, criterion: int) -> Floats:
        """Return 1 for each request that missed the criterion and 0 for the others, shape ``(requests,)``."""
        flags = np.zeros(self.requests)
        flags[list(self.misses[criterion])] = 1
        return flags

    def lasting(self, duration_s: float) -> ProbeResult:
        """Return the same with another duration, such as one that counts the draining of the queue."""
        return replace(self, duration_s=duration_s)

    def to_json(self) -> str:
        """Write one line for a journal."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ProbeResult:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(text)
        fields["misses"] = tuple(tuple(positions) for positions in fields["misses"])
        fields["decorrelation"] = tuple(fields["decorrelation"])
        return cls(**fields)


class Probe(Protocol):
    """A server that can be offered a rate."""

    def run(self, rate_qps: float, requests: int, part: int, stop: Callable[[ProbeResult], bool]) -> ProbeResult:
        """Offer `rate_qps` from a drained server until `requests` were sent or `stop` says so, and drain it again.

        Parameters
        ----------
        rate_qps
            Mean rate, open loop.
        requests
            Most requests to send.
        part
            Which stretch of the one stream of arrivals to take. The same part gives the same gaps at every rate,
            only scaled.
        stop
            Asked from time to time with what is known so far.
        """


def _rank_decorrelation(severity: Floats) -> float:
    """Return the decorrelation of the latencies' ranks, which shows a queue's memory before anything is missed."""
    if len(severity) < 2:
        return 1.0
    _, place, ties = np.unique(severity, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - ties / 2)[place]
    variance = float(ranks.var())
    return decorrelation([ranks], variance, _TREND)[0] if variance > 0 else 1.0
