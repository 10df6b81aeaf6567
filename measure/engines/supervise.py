"""The small process between qplan and an engine: no process of an engine outlives it, whatever ends qplan.

``python -P -m qplan.measure.engines.supervise`` reads one JSON object on its standard input (``argv``, ``env``,
``log``, ``parent``, ``grace_s``), starts the engine in a session of its own, writes the engine's process id as one line
to its standard output, and then ends every process of the engine as soon as

- the engine's first process ends: its helpers are of no use alone;
- it is sent SIGTERM, which is how a server is stopped;
- its parent is another one than `parent`: qplan was killed.

On Linux it is the reaper of all its descendants, so that processes which daemonise cannot leave it, and the engine is
killed by the kernel should this process itself be killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PARENT_POLL_S = 0.5
_KILL_LIMIT_S = 20.0


def main() -> int:
    """Run one engine; returns its exit status as a shell would give it."""
    spec = json.load(sys.stdin)
    stopped = _Signals()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        with open(spec["log"], "ab") as log:
            engine = subprocess.Popen(  # noqa: S603 - a list of arguments, never a shell string
                spec["argv"],
                env=spec["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - there is one thread
            )
    except OSError as error:
        _report(f"error {error.strerror}: {error.filename}")
        return 127
    _report(f"pid {engine.pid}")
    while engine.returncode is None and not stopped.asked and os.getppid() == spec["parent"]:
        stopped.wait(_PARENT_POLL_S)
        _reap(engine)
    _end(engine, spec["grace_s"], stopped)
    return 128 - engine.returncode if (engine.returncode or 0) < 0 else engine.returncode or 0


class _Signals:
    """SIGTERM and SIGCHLD as something that one can wait for."""

    def __init__(self) -> None:
        self.asked = False
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for qplan, which stops its servers
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def wait(self, seconds: float) -> None:
        """Sleep until a signal came, or for `seconds`."""
        if select.select([self._read], [], [], seconds)[0]:
            os.read(self._read, 4096)


def _end(engine: subprocess.Popen[bytes], grace_s: float, signals: _Signals) -> None:
    """Ask the engine to end, wait `grace_s`, then kill every descendant until none is left."""
    if engine.returncode is None:
        os.kill(engine.pid, signal.SIGTERM)
    deadline = time.perf_counter() + grace_s
    while engine.returncode is None and time.perf_counter() < deadline:
        signals.wait(0.1)
        _reap(engine)
    me = psutil.Process()
    deadline = time.perf_counter() + _KILL_LIMIT_S
    while _reap(engine) and time.perf_counter() < deadline:
        for process in me.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        signals.wait(0.05)


def _reap(engine: subprocess.Popen[bytes]) -> bool:
    """Collect every descendant that has ended; returns whether any is left.

    Those that daemonised are this process's children too, so the kernel knows for certain, as no list of processes,
    which can miss one that was just forked, does.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == engine.pid:
            engine.returncode = os.waitstatus_to_exitcode(status)


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _report(line: str) -> None:
    """Write one line to qplan, and end the output: it waits for nothing more."""
    sys.stdout.write(line)
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
