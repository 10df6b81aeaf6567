"""Structured logs: one JSON object a line, written by a thread of its own, so that no slow reader stalls a stream."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import IO

import orjson

_MOST_LINES = 20_000
_LOOK_S = 0.05


class Log:
    """Writes events; those that nobody reads fast enough are dropped and counted.

    Parameters
    ----------
    file
        Where to; standard error unless given.
    process
        Number of the router's process, in every line.
    """

    def __init__(self, file: IO[bytes] | None = None, process: int = 0) -> None:
        self._file = file if file is not None else sys.stderr.buffer
        self._process = process
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def write(self, event: str, **fields: object) -> None:
        """Write an event now."""
        if len(self._lines) >= _MOST_LINES:
            self._dropped += 1
            return
        if self._dropped:
            fields["lines_dropped"], self._dropped = self._dropped, 0
        line = orjson.dumps({"time": round(time.time(), 6), "event": event, "process": self._process, **fields})
        self._lines.append(line)

    def close(self) -> None:
        """Write what is left, for a second at most."""
        self._ended.set()
        self._thread.join(timeout=1.0)

    def _write(self) -> None:
        ended = False
        while not ended:
            # Looking now and then, instead of being woken for every line, leaves the interpreter to the streams.
            ended = self._ended.wait(_LOOK_S)
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            try:
                self._file.write(b"".join(line + b"\n" for line in lines))
                self._file.flush()
            except (OSError, ValueError):
                return  # nobody reads any more
