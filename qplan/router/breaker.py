"""A circuit breaker for one replica: after failures in a row it is left alone, then tried with one request."""

from __future__ import annotations

from enum import StrEnum

_FAILURES = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class Circuit(StrEnum):
    """What may be sent to a replica: everything, nothing, or one request on trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """The circuit of one replica; the caller tells the time, in seconds of any clock that only goes forward.

    ::

        closed ── 3 failures in a row ──► open ── pause over ──► half-open
          ▲ ▲                              ▲                         │
          │ │                              └──── the trial fails ────┤
          │ └───────────── the trial succeeds ───────────────────────┘
          │
        closed ── `trip`: it is gone ──► open ── `mend`: it is there again ──► closed, on its last chance

    The pause doubles from 1 s to 30 s with every trial that fails.

    Attributes
    ----------
    gone
        It was tripped, and not mended since.
    """

    __slots__ = ("_failures", "_pause_s", "_trial", "_until_s", "gone", "state")

    def __init__(self) -> None:
        self.state = Circuit.CLOSED
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._until_s = 0.0
        self._trial = self.gone = False

    def admits(self, now_s: float) -> bool:
        """Whether a request may be sent now."""
        if self.state is Circuit.OPEN and not self.gone and now_s >= self._until_s:
            self.state = Circuit.HALF_OPEN
        return self.state is Circuit.CLOSED or (self.state is Circuit.HALF_OPEN and not self._trial)

    def begin(self) -> None:
        """Take note that a request is sent; in a half-open circuit, it is the trial."""
        self._trial = self.state is Circuit.HALF_OPEN

    def succeed(self) -> None:
        """Take note that a request was answered."""
        self._failures = 0
        if not self.gone:
            self.state, self._pause_s, self._trial = Circuit.CLOSED, _FIRST_PAUSE_S, False

    def fail(self, now_s: float) -> None:
        """Take note that a request failed, and that it was the replica's doing."""
        self._failures += 1
        if self.state is Circuit.HALF_OPEN:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        elif self.state is Circuit.OPEN or self._failures < _FAILURES:
            return
        self.state, self._until_s, self._trial = Circuit.OPEN, now_s + self._pause_s, False

    def forget(self) -> None:
        """Take note that a request ended without saying anything of the replica, such as one that its client left."""
        self._trial = False

    def trip(self) -> None:
        """Open the circuit at once, until it is mended: the replica is gone."""
        self.state, self.gone, self._trial = Circuit.OPEN, True, False

    def mend(self) -> None:
        """Close the circuit if it was tripped: the replica is there again."""
        if self.gone:
            self.state, self.gone, self._failures = Circuit.CLOSED, False, _FAILURES - 1
