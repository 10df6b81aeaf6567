"""Running code that a model wrote.

A child process runs it, in an empty folder, with an empty environment, and with bounds on CPU time, memory and time on
the clock. On Linux (x86-64, AArch64) a seccomp filter takes from it the network, other processes, signals and every way
to change a file; it needs no privilege and holds in containers. Elsewhere Python's audit events do the same for code
that does not set out to break them. What is left is reading files, which it can tell nobody about.

The guard is against the mistakes of models, not against an attacker who knows it.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qplan.core.errors import MeasurementError
from qplan.measure.quality import jail

TIMEOUT_S = 10.0
MEMORY_BYTES = 1 << 29

_FILTERS = Path("/proc/sys/kernel/seccomp/actions_avail")
_VERDICT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether code ran to its last line, and if not, why not."""

    passed: bool
    reason: str


def guard() -> str:
    """Return what holds code back here: ``seccomp`` or ``audit``."""
    filters = _FILTERS.exists() and platform.machine() in jail.ARCHITECTURES
    return "seccomp" if filters else "audit"


def run(
    source: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES, by: str | None = None
) -> Outcome:
    """Run Python code and say whether it came to its end without an exception.

    Parameters
    ----------
    source
        The program; the standard library is all that it can import.
    timeout_s
        Most seconds on the clock, and of CPU time.
    memory_bytes
        Most address space.
    by
        Guard to use; by default the stronger one that this system has.

    Raises
    ------
    MeasurementError
        The guard could not be put up: nothing was run.
    """
    by = by or guard()
    secret = secrets.token_hex(16)
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-S", "-B", jail.__file__]
    command += [by, str(int(timeout_s) + 1), str(memory_bytes), str(writing)]
    with tempfile.TemporaryDirectory(prefix="qplan-sandbox-") as folder, os.fdopen(reading, "rb") as verdict:
        try:
            child = subprocess.Popen(  # noqa: S603 - arguments of our own
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={},
                pass_fds=(writing,),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            _, complaint = child.communicate(f"{secret}\n{source}".encode(errors="replace"), timeout_s)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"timed out after {timeout_s:g} s")
        finally:
            _end(child)
        said = os.read(verdict.fileno(), _VERDICT_BYTES).decode(errors="replace")
    return _judge(said, secret, child.returncode, complaint)


def _judge(said: str, secret: str, code: int, complaint: bytes) -> Outcome:
    if said == f"{secret} passed":
        return Outcome(True, "passed")
    if said:
        return Outcome(False, said.replace(secret, ""))
    if code < 0:
        return Outcome(False, f"killed by {signal.Signals(-code).name}")
    if b"prctl" in complaint and b"jail.py" in complaint:
        raise MeasurementError(f"no guard for code written by a model could be put up: {complaint.decode()[-200:]}")
    return Outcome(False, f"ended the process before its last line, with code {code}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and whatever is left of its group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
