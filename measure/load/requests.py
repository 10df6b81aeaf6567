"""What happened to each request: raw timestamps, token counts and outcomes, in columns.

All times are seconds since the start of the run, on the monotonic clock; :attr:`Requests.origin_s` is where that start
lies on :func:`time.perf_counter`, so that an energy meter of the same machine can be asked about the same window.
Latencies follow vLLM's definitions: TTFT from sending to the first non-empty content, E2E from sending to the last
content, TPOT ``(E2E - TTFT)/(output tokens - 1)``, ITL the gap between consecutive chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

NOT_SAID = -1
"""Token count of a request whose server sent no ``usage``."""

CLIENT_LIMIT = "client: "
"""Start of the reason of a failure that this machine's limits caused, not the server."""


class Outcome(IntEnum):
    """How a request ended. The numbers are stored: never renumber."""

    OK = 0
    FAILED = 1
    TIMEOUT = 2
    TRUNCATED = 3  # the stream ended early, or with fewer tokens than asked and no stop reason
    EMPTY = 4  # a complete stream without any text
    CANCELLED = 5  # by ourselves, when the run was stopped: neither a success nor a failure


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it went.

    Attributes
    ----------
    index
        Position in the schedule.
    scheduled_s, sent_s, end_s
        When it should have been sent, was sent, and was over (whatever the outcome).
    chunk_s
        When each chunk with content arrived.
    input_tokens, output_tokens
        From the server's ``usage``; :data:`NOT_SAID` where it sent none.
    asked_tokens
        Output tokens asked for.
    reason
        Why the outcome is not ``OK``, in a few words; else empty.
    """

    index: int
    scheduled_s: float
    sent_s: float
    end_s: float
    chunk_s: tuple[float, ...]
    input_tokens: int
    output_tokens: int
    asked_tokens: int
    outcome: Outcome
    reason: str

    @property
    def first_token_s(self) -> float:
        """When the first content arrived; NaN where none did."""
        return self.chunk_s[0] if self.chunk_s else math.nan

    @property
    def ttft_s(self) -> float:
        """Time to first token, from sending; NaN where none came. Stands for any outcome."""
        return self.first_token_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Sent to last chunk; NaN unless the request succeeded."""
        return self.chunk_s[-1] - self.sent_s if self.outcome is Outcome.OK else math.nan

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; NaN for a failure, a single token, or where tokens were not told."""
        if self.outcome is not Outcome.OK or self.output_tokens < 2:
            return math.nan
        return (self.chunk_s[-1] - self.chunk_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> float:
        """Longest gap between consecutive chunks; NaN for a failure or a single chunk."""
        if self.outcome is not Outcome.OK or len(self.chunk_s) < 2:
            return math.nan
        return max(after - before for before, after in zip(self.chunk_s, self.chunk_s[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a run that were sent, in the order of the schedule; `n` of them with `c` chunks in all.

    Attributes
    ----------
    index
        Position in the schedule, shape ``(n,)``.
    scheduled_s, sent_s, end_s
        Shape ``(n,)``.
    chunk_s, offsets
        Arrival of all chunks with content, shape ``(c,)``; those of request ``i`` are
        ``chunk_s[offsets[i]:offsets[i + 1]]``, so `offsets` has the shape ``(n + 1,)``.
    input_tokens, output_tokens, asked_tokens
        Shape ``(n,)``; :data:`NOT_SAID` where the server sent no ``usage``.
    outcome
        Codes of :class:`Outcome`, shape ``(n,)``.
    reason
        Why, where the outcome is not ``OK``; `n` texts.
    origin_s
        Start of the run on :func:`time.perf_counter`.
    cpu_s, processes
        CPU time that the client used from `origin_s` to the end of the run, over all its processes, and their number.
    """

    index: Ints
    scheduled_s: Floats
    sent_s: Floats
    end_s: Floats
    chunk_s: Floats
    offsets: Ints
    input_tokens: Ints
    output_tokens: Ints
    asked_tokens: Ints
    outcome: Ints
    reason: tuple[str, ...]
    origin_s: float
    cpu_s: float
    processes: int = 1

    @classmethod
    def of(
        cls, requests: Iterable[Request], *, origin_s: float = 0.0, cpu_s: float = 0.0, processes: int = 1
    ) -> Requests:
        """Put `requests` into columns, in the order of the schedule."""
        rows = sorted(requests, key=lambda request: request.index)
        counts = [len(row.chunk_s) for row in rows]
        return cls(
            np.array([row.index for row in rows], np.int64),
            np.array([row.scheduled_s for row in rows], float),
            np.array([row.sent_s for row in rows], float),
            np.array([row.end_s for row in rows], float),
            np.array([time_s for row in rows for time_s in row.chunk_s], float),
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            np.array([row.input_tokens for row in rows], np.int64),
            np.array([row.output_tokens for row in rows], np.int64),
            np.array([row.asked_tokens for row in rows], np.int64),
            np.array([row.outcome for row in rows], np.int64),
            tuple(row.reason for row in rows),
            origin_s,
            cpu_s,
            processes,
        )

    @classmethod
    def merge(cls, parts: Iterable[Requests]) -> Requests:
        """Join the shares of one run's processes."""
        shares = list(parts)
        return cls.of(
            (request for share in shares for request in share),
            origin_s=shares[0].origin_s,
            cpu_s=sum(share.cpu_s for share in shares),
            processes=sum(share.processes for share in shares),
        )

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Request]:
        for row in range(len(self)):
            yield self[row]

    def __getitem__(self, row: int) -> Request:
        """Return request number `row` of those sent."""
        return Request(
            int(self.index[row]),
            float(self.scheduled_s[row]),
            float(self.sent_s[row]),
            float(self.end_s[row]),
            tuple(self.chunk_s[self.offsets[row] : self.offsets[row + 1]].tolist()),
            int(self.input_tokens[row]),
            int(self.output_tokens[row]),
            int(self.asked_tokens[row]),
            Outcome(int(self.outcome[row])),
            self.reason[row],
        )

    def take(self, mask: Mask) -> Requests:
        """Return the requests where `mask`, shape ``(n,)``, holds."""
        counts = np.diff(self.offsets)
        return replace(
            self,
            index=self.index[mask],
            scheduled_s=self.scheduled_s[mask],
            sent_s=self.sent_s[mask],
            end_s=self.end_s[mask],
            chunk_s=self.chunk_s[np.repeat(mask, counts)],
            offsets=np.concatenate([[0], np.cumsum(counts[mask])]).astype(np.int64),
            input_tokens=self.input_tokens[mask],
            output_tokens=self.output_tokens[mask],
            asked_tokens=self.asked_tokens[mask],
            outcome=self.outcome[mask],
            reason=tuple(text for text, kept in zip(self.reason, mask, strict=True) if kept),
        )

    @property
    def ok(self) -> Mask:
        """Which requests succeeded, shape ``(n,)``."""
        return np.equal(self.outcome, Outcome.OK)

    @property
    def failed(self) -> Mask:
        """Which failed, timed out, were truncated or came back empty, shape ``(n,)``; not those we cancelled."""
        return ~np.isin(self.outcome, (Outcome.OK, Outcome.CANCELLED))

    @property
    def first_token_s(self) -> Floats:
        """When the first content arrived, shape ``(n,)``; NaN where none did."""
        return self._chunk(self.offsets[:-1])

    @property
    def lag_s(self) -> Floats:
        """How late each request was sent, shape ``(n,)``."""
        return self.sent_s - self.scheduled_s

    @property
    def ttft_s(self) -> Floats:
        """Time to first token from sending, shape ``(n,)``; NaN where none came. Stands for any outcome."""
        return self.first_token_s - self.sent_s

    @property
    def ttft_scheduled_s(self) -> Floats:
        """Time to first token from the scheduled start, shape ``(n,)``."""
        return self.first_token_s - self.scheduled_s

    @property
    def e2e_s(self) -> Floats:
        """Sent to last chunk, shape ``(n,)``; NaN unless the request succeeded."""
        return np.where(self.ok, self._chunk(self.offsets[1:] - 1) - self.sent_s, np.nan)

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first, shape ``(n,)``; NaN as in :attr:`Request.tpot_s`."""
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1, 1)
        return np.where(self.output_tokens > 1, (self.e2e_s - self.ttft_s) / gaps, np.nan)

    @property
    def gaps_s(self) -> Floats:
        """Gaps between consecutive chunks of the requests that succeeded, pooled."""
        return self._gaps()[0]

    @property
    def itl_s(self) -> Floats:
        """Longest gap of each request, shape ``(n,)``; NaN as in :attr:`Request.itl_s`."""
        gaps, owner = self._gaps()
        longest = np.full(len(self), -np.inf)
        np.maximum.at(longest, owner, gaps)
        return np.where(np.isfinite(longest), longest, np.nan)

    def _gaps(self) -> tuple[Floats, Ints]:
        counts = np.diff(self.offsets)
        owner = np.repeat(np.arange(len(self)), counts)
        inside = (owner[1:] == owner[:-1]) & self.ok[owner[1:]]
        return np.diff(self.chunk_s)[inside], owner[1:][inside]

    def _chunk(self, at: Ints) -> Floats:
        if not len(self.chunk_s):
            return np.full(len(self), np.nan)
        return np.where(np.diff(self.offsets) > 0, self.chunk_s[np.clip(at, 0, len(self.chunk_s) - 1)], np.nan)
