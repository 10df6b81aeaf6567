"""Engines that are programs: started, watched on three signs, and ended with every process they started.

::

    qplan ──► supervise ──► engine ──► its workers
              ends all of them when the engine ends, when it is told to, or when qplan is gone

The signs are the process, its health route, and a deadline: an engine can be alive and answer 200, or 503, forever.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.blocking_http import fetch
from qplan.measure.engines.contract import EngineError, EngineState
from qplan.measure.engines.metrics_text import read_state
from qplan.measure.engines.readiness import check_answers, check_sanity

if TYPE_CHECKING:
    from psutil import Process

PORT = "{port}"
"""Argument of a :class:`Launch` that stands for the port, which is chosen when the engine is started."""

_HEALTH_TIMEOUT_S = 30.0  # an engine that is short of CPU answers late, which is not dead
_FIRST_HEALTH_TIMEOUT_S = 2.0  # another listener may sit on the port while the engine ends for that
_POLL_S = 0.1
_END_NOTICE_S = 2.0
_PORT_TRIES = 3
_KILL_LIMIT_S = 30.0  # longer than the supervisor takes to give up
_PORT_TAKEN = re.compile(r"address already in use|couldn't bind|errno 98", re.IGNORECASE)
_LOG_TAIL_BYTES = 65536
_ERROR_LINES = 300  # the line that tells why may stand above long traces of those that it hit


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started and reached.

    Attributes
    ----------
    argv
        Program and arguments; an argument that is :data:`PORT` becomes the port.
    model
        Name by which the server knows the model.
    version
        Version of the engine.
    env
        Variables set besides those of this process.
    health
        Route that answers 200 while the engine serves.
    metrics
        Route of the engine's own metrics; ``None`` where it has none.
    grace_s
        Time between asking the engine to end and killing it.
    meaningful
        Whether the first answer must make sense, or only be there.
    """

    argv: tuple[str, ...]
    model: str
    version: str
    env: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    metrics: str | None = "/metrics"
    grace_s: float = 10.0
    meaningful: bool = True


def start_process(launch: Launch, *, folder: Path, deadline_s: float) -> ServerProcess:
    """Start an engine and return once a sane completion came back; its output goes to ``engine.log`` in `folder`.

    Raises
    ------
    MeasurementError
        It cannot be started, died, was not ready after `deadline_s`, or answers garbage. No process of it is left.
    """
    if find_spec("psutil") is None:
        raise MeasurementError("watching an engine's processes needs psutil; pip install 'qplan[measure]'")
    deadline = time.perf_counter() + deadline_s
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(_PORT_TRIES):
        server = ServerProcess(launch, free_port(), folder / "engine.log")
        try:
            server.wait_until_ready(deadline)
        except BaseException as error:
            server.stop()
            taken = isinstance(error, MeasurementError) and _PORT_TAKEN.search("\n".join(server.last_lines()))
            if not taken or attempt == _PORT_TRIES - 1:
                raise
        else:
            return server
    raise AssertionError


def free_port() -> int:
    """Return a port of this machine that nobody listens on, below those that outgoing connections are given."""
    ports = random.SystemRandom().sample(range(20000, 32768), 100)
    for port in ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise MeasurementError("no free port between 20000 and 32767")


class ServerProcess:
    """A :class:`~qplan.measure.engines.contract.Server` that runs as processes of this machine."""

    def __init__(self, launch: Launch, port: int, log: Path) -> None:
        self.command = tuple(str(port) if argument == PORT else argument for argument in launch.argv)
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}", launch.model)
        self.version = launch.version
        self._launch = launch
        self._log = log
        with log.open("ab") as lines:
            lines.write(f"$ {shlex.join(self.command)}\n".encode())
            self._log_start = lines.tell()
        self._family: dict[int, Process] = {}
        self._supervisor, self.pid = self._spawn()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start the supervisor, which starts the engine and says its process id."""
        spec = {
            "argv": self.command,
            "env": {**os.environ, **self._launch.env},
            "log": str(self._log.absolute()),
            "parent": os.getpid(),
            "grace_s": self._launch.grace_s,
        }
        with self._log.open("ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "qplan.measure.engines.supervise"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        try:
            with supervisor.stdin as pipe, suppress(BrokenPipeError):
                pipe.write(json.dumps(spec).encode())
            with supervisor.stdout as pipe:
                word, _, rest = pipe.readline().decode().strip().partition(" ")
        except BaseException:
            supervisor.terminate()
            supervisor.wait()
            raise
        if word == "pid":
            return supervisor, int(rest)
        supervisor.wait()
        raise EngineError(f"cannot start {self.command[0]}: {rest or 'no process'}", self.last_lines(_ERROR_LINES))

    def wait_until_ready(self, deadline: float) -> None:
        """Wait for the health route, then for sane tokens, until `deadline` on :func:`time.perf_counter`.

        Raises
        ------
        EngineError
            The engine died, was not ready in time, or answers garbage.
        """
        why = "its health route never answered"
        while time.perf_counter() < deadline:
            self._check_process()
            with suppress(MeasurementError):
                wait_s = min(_FIRST_HEALTH_TIMEOUT_S, _left(deadline))
                status = fetch(self.endpoint, self._launch.health, timeout_s=wait_s).status
                if status == 200:
                    break
                why = f"its health route answers {status}"
            time.sleep(_POLL_S)
        else:
            raise self._error(f"was not ready in time: {why}")
        try:
            if self._launch.meaningful:
                check_sanity(self.endpoint, timeout_s=_left(deadline))
            else:
                check_answers(self.endpoint, timeout_s=_left(deadline))
        except MeasurementError as error:
            self._check_process()
            raise self._error(f"is healthy but does not serve: {error}") from None
        self._check_process()  # else it was another server that answered on this port
        self._remember_family()

    def check(self) -> None:
        """Raise if the engine's process is gone, or its health route does not answer 200."""
        self._check_process()
        self._remember_family()
        try:
            status = fetch(self.endpoint, self._launch.health, timeout_s=_HEALTH_TIMEOUT_S).status
        except MeasurementError as error:
            with suppress(subprocess.TimeoutExpired):  # a process that ends closes its port before it is gone
                self._supervisor.wait(_END_NOTICE_S)
            self._check_process()
            raise self._error(f"is not healthy: {error}") from None
        if status != 200:
            raise self._error(f"is not healthy: {self._launch.health} answers {status}")

    def state(self) -> EngineState:
        """Read the engine's metrics; every field ``None`` where it has none or does not answer."""
        if self._launch.metrics is None:
            return EngineState()
        try:
            answer = fetch(self.endpoint, self._launch.metrics, timeout_s=_HEALTH_TIMEOUT_S)
        except MeasurementError:
            return EngineState()
        return read_state(answer.text) if answer.status == 200 else EngineState()

    def cpu_s(self) -> float | None:
        """CPU time of all processes of the engine so far, those that have ended included; ``None`` after the end."""
        if self._supervisor.poll() is not None:
            return None
        self._remember_family()
        return _cpu_s(self._supervisor.pid, list(self._family.values()))

    def last_lines(self, count: int = 20) -> tuple[str, ...]:
        """Return the last lines that the engine wrote since this start, without blank ones."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
        lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
        return tuple([line for line in lines if line][-count:])

    def stop(self) -> None:
        """End every process of the engine.

        Raises
        ------
        EngineError
            A process is left that not even SIGKILL ends.
        """
        if self._supervisor.poll() is None:
            self._remember_family()
            self._supervisor.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(self._launch.grace_s + _KILL_LIMIT_S)
        left = _kill(self._family.values())
        if self._supervisor.poll() is None:
            self._supervisor.kill()
            self._supervisor.wait()
        if left:
            raise self._error(f"left processes that cannot be killed: {', '.join(map(str, left))}")
        self._family.clear()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check_process(self) -> None:
        status = self._supervisor.poll()
        if status is not None:
            raise self._error(f"ended with {_exit(status)}")

    def _remember_family(self) -> None:
        """Note every process of the engine, so that it can be ended even if the supervisor is killed."""
        import psutil

        with suppress(psutil.NoSuchProcess):
            now = psutil.Process(self._supervisor.pid).children(recursive=True)
            # a supervisor that was just killed has no children any more, but they are there
            before = [process for process in self._family.values() if process.is_running()]
            self._family = {process.pid: process for process in (*before, *now)}

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{_program(self.command)} {what}", self.last_lines(_ERROR_LINES))


def _program(command: tuple[str, ...]) -> str:
    """Return what a command runs, by the name of its program or of its Python module."""
    return command[command.index("-m") + 1] if "-m" in command[:4] else Path(command[0]).name


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.perf_counter())


def _exit(status: int) -> str:
    if status < 0:
        return f"its supervisor killed by {signal.Signals(-status).name}"
    if status > 128:
        with suppress(ValueError):
            return signal.Signals(status - 128).name
    return f"exit status {status}"


def _cpu_s(supervisor: int, family: list[Process]) -> float | None:
    """Sum what the engine's processes used, and what those used that have ended."""
    import psutil

    try:
        ended = psutil.Process(supervisor).cpu_times()
    except psutil.NoSuchProcess:
        return None
    total = ended.children_user + ended.children_system
    for process in family:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def _kill(family: Iterable[Process]) -> list[int]:
    """Kill what is left of `family`; returns the ids of those that outlive it."""
    import psutil

    left = [process for process in family if process.is_running()]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return [process.pid for process in psutil.wait_procs(left, timeout=_KILL_LIMIT_S)[1]]
