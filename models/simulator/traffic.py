"""Requests as the simulator takes them: when they come, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from qplan.core.errors import InputError
from qplan.core.workload import Workload
from qplan.models.steptimes import Floats, Ints


@dataclass(frozen=True, slots=True)
class Traffic:
    """N requests in order of arrival.

    Attributes
    ----------
    arrivals_s : (N,)
        Ascending seconds.
    input_tokens, output_tokens : (N,)
        At least 1.
    buckets : (N,)
        What each is to a dispatcher that tells requests apart, a number from 0; all 0 where nobody says.
    sessions : (N,)
        The conversation that each is a turn of, a number from 0: its prompt begins with the turns before, and their
        answers. -1, and everywhere where nobody says: none.
    """

    arrivals_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    buckets: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    sessions: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.buckets):
            object.__setattr__(self, "buckets", np.zeros(len(self.arrivals_s), np.int64))
        if not len(self.sessions):
            object.__setattr__(self, "sessions", np.full(len(self.arrivals_s), -1))
        columns = (self.input_tokens, self.output_tokens, self.buckets, self.sessions)
        if any(len(column) != len(self.arrivals_s) for column in columns):
            raise InputError("traffic: arrivals, input tokens, output tokens, buckets and sessions differ in number")
        if len(self) and (not np.isfinite(self.arrivals_s).all() or self.arrivals_s[0] < 0):
            raise InputError("traffic: an arrival is not a finite time from 0")
        if (np.diff(self.arrivals_s) < 0).any():
            raise InputError("traffic: arrivals are not in order")
        if len(self) and min(self.input_tokens.min(), self.output_tokens.min()) < 1:
            raise InputError("traffic: a request has no input or no output token")
        if len(self) and self.buckets.min() < 0:
            raise InputError("traffic: a bucket is below 0")
        if len(self) and self.sessions.min() < -1:
            raise InputError("traffic: a session is below 0, and not -1, which is none")

    def __len__(self) -> int:
        return len(self.arrivals_s)

    def part(self, start: int, stop: int) -> Traffic:
        """Return the requests from `start` up to `stop`."""
        rows = slice(start, stop)
        lengths = self.input_tokens[rows], self.output_tokens[rows]
        return Traffic(self.arrivals_s[rows], *lengths, self.buckets[rows], self.sessions[rows])


def poisson(
    workload: Workload,
    rate_qps: float,
    *,
    requests: int | None = None,
    duration_s: float = np.inf,
    seed: int = 0,
    chunk: int = 65536,
) -> Iterator[Traffic]:
    """Draw requests of a workload that arrive as a Poisson stream, in chunks: so many, or those of a time.

    Their buckets are those of the workload.

    The same seed gives the same lengths, and the same pattern of arrivals, at every rate.
    """
    if not (np.isfinite(rate_qps) and rate_qps > 0):
        raise InputError(f"rate of {rate_qps:g} requests per second; expected more than 0")
    if requests is None and not np.isfinite(duration_s):
        raise InputError("traffic needs a number of requests or a duration")
    random = np.random.default_rng(seed)
    lengths = np.array([(bucket.input_tokens, bucket.output_tokens) for bucket in workload.buckets])
    weights = np.array([bucket.weight for bucket in workload.buckets])
    whole = np.maximum(np.rint(lengths).astype(np.int64), 1)
    drawn, units = 0, np.zeros(1)
    while (requests is None or drawn < requests) and units[-1] / rate_qps < duration_s:
        units = units[-1] + np.cumsum(random.exponential(size=chunk))
        kinds = random.choice(len(weights), chunk, p=weights / weights.sum())
        count = int(np.searchsorted(units / rate_qps, duration_s))
        count = count if requests is None else min(count, requests - drawn)
        drawn += count
        kinds = kinds[:count]
        yield Traffic(units[:count] / rate_qps, whole[kinds, 0], whole[kinds, 1], kinds)
