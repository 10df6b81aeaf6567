"""Engines as processes: how they start, how their death is seen, and that nothing of them is left."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from qplan.core.errors import MeasurementError
from qplan.measure.engines import process
from qplan.measure.engines.conformance import left_after, runs
from qplan.measure.engines.contract import EngineError, EngineState
from qplan.measure.engines.process import Launch, ServerProcess, free_port, start_process

Scripted = Callable[..., Launch]


def start(launch: Launch, folder: Path, deadline_s: float = 30) -> ServerProcess:
    return start_process(launch, folder=folder, deadline_s=deadline_s)


def family_of(path: Path) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in json.loads(path.read_text()) if psutil.pid_exists(pid)]


def check_until_it_raises(server: ServerProcess) -> None:
    deadline = time.perf_counter() + 30
    while time.perf_counter() < deadline:
        server.check()
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    resource_tracker.ensure_running()
    before = descendants()
    yield
    assert descendants() <= before


def descendants() -> set[psutil.Process]:
    return {child for child in psutil.Process().children(recursive=True) if runs(child)}


def test_a_server_starts_serves_and_ends(scripted: Scripted, tmp_path: Path) -> None:
    with start(scripted(metrics="vllm:num_requests_running 3.0\n"), tmp_path) as server:
        server.check()
        assert server.state() == EngineState(running=3.0)
        assert server.command[-1] == server.endpoint.url.rpartition(":")[2]
        assert server.last_lines() == ("scripted engine: starting", "scripted engine: listening")
        assert runs(psutil.Process(server.pid))
    assert server.cpu_s() is None
    with pytest.raises(EngineError, match="ended"):
        server.check()


def test_a_slow_start_is_waited_for(scripted: Scripted, tmp_path: Path) -> None:
    began = time.perf_counter()
    with start(scripted(start_s=1.5), tmp_path) as server:
        assert time.perf_counter() - began > 1.5
        server.check()


@pytest.mark.parametrize(
    ("script", "deadline_s", "says"),
    [
        ({"health": 503}, 6, "not ready in time: its health route answers 503"),
        ({"health": "hang"}, 1, "not ready in time: its health route never answered"),
        ({"start_s": 60}, 1, "not ready in time: its health route never answered"),
    ],
)
def test_the_deadline_ends_what_never_gets_ready(
    scripted: Scripted, tmp_path: Path, script: dict[str, object], deadline_s: float, says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        start(scripted(**script), tmp_path, deadline_s)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"output": "random"}, "garbage: it says 'Heart ially vest"),
        ({"output": "repeat"}, "garbage: it repeats '!"),
        ({"output": "replacement"}, "garbage: it is not UTF-8"),
        ({"output": "empty"}, "garbage: it is empty"),
        ({"output": "error"}, "answered no completion.*the worker is gone"),
    ],
)
def test_a_healthy_engine_that_answers_garbage_is_refused(
    scripted: Scripted, tmp_path: Path, script: dict[str, object], says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        start(scripted(**script), tmp_path)


def test_a_crash_at_the_start_is_told_with_its_last_lines(scripted: Scripted, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as error:
        start(scripted(fail="torch.OutOfMemoryError: tried to allocate 20 GiB"), tmp_path)
    assert "exit status 3; it said: torch.OutOfMemoryError: tried to allocate 20 GiB" in str(error.value)
    assert error.value.last_lines == ("scripted engine: starting", "torch.OutOfMemoryError: tried to allocate 20 GiB")


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^cannot start /no/such/engine: No such file or directory"):
        start(Launch(("/no/such/engine", "serve"), "tiny", "1.0"), tmp_path)


def test_a_crash_in_mid_run_is_seen_and_takes_the_family_with_it(scripted: Scripted, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with start(scripted(crash_after_s=2, family=str(pids)), tmp_path) as server:
        family = family_of(pids)
        assert sum(map(runs, family)) == 3
        with pytest.raises(EngineError, match="exit status 9; it said: fatal error: CUDA error"):
            check_until_it_raises(server)
        assert left_after(family, 30) == []


def test_stopping_ends_children_in_other_sessions_daemons_and_zombies(scripted: Scripted, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    server = start(scripted(family=str(pids)), tmp_path)
    family = family_of(pids)
    assert sum(map(runs, family)) == 3
    server.stop()
    assert left_after(family, 0) == []
    server.stop()


def test_an_engine_that_ignores_sigterm_is_killed_after_its_grace(scripted: Scripted, tmp_path: Path) -> None:
    server = start(scripted(ignore_sigterm=True, grace_s=0.5), tmp_path)
    engine = psutil.Process(server.pid)
    began = time.perf_counter()
    server.stop()
    assert time.perf_counter() - began >= 0.5
    assert not runs(engine)


def test_an_engine_that_is_stopped_by_a_signal_is_killed_all_the_same(scripted: Scripted, tmp_path: Path) -> None:
    server = start(scripted(grace_s=0.5), tmp_path)
    engine = psutil.Process(server.pid)
    engine.suspend()
    server.stop()
    assert not runs(engine)


def test_killing_the_supervisor_leaves_nothing_either(scripted: Scripted, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    server = start(scripted(family=str(pids)), tmp_path)
    family = [psutil.Process(server.pid), *family_of(pids)]
    psutil.Process(server.pid).parent().kill()  # type: ignore[union-attr]
    with pytest.raises(EngineError, match="supervisor killed by SIGKILL"):
        check_until_it_raises(server)
    server.stop()
    assert left_after(family, 30) == []


def test_killing_qplan_ends_the_engine_and_its_family(scripted: Scripted, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    parent = spawn.Process(target=start_and_wait, args=(scripted(family=str(pids)), tmp_path, there), daemon=True)
    parent.start()
    there.close()
    assert here.poll(60)
    family = [psutil.Process(here.recv()), *family_of(pids)]
    parent.kill()
    parent.join()
    parent.close()
    assert left_after(family, 30) == []


def start_and_wait(launch: Launch, folder: Path, to: Connection) -> None:
    server = start(launch, folder)
    to.send(server.pid)
    signal.pause()


# The signal may come between the making of the health check's socket and its being kept in the connection.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_ctrl_c_while_an_engine_starts_leaves_nothing(scripted: Scripted, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    threading.Thread(target=interrupt_once_there_is, args=(pids,)).start()
    with pytest.raises(KeyboardInterrupt):
        start(scripted(start_s=60, family=str(pids), grace_s=1), tmp_path)
    assert left_after(family_of(pids), 0) == []


def interrupt_once_there_is(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_cpu_time_counts_processes_that_have_ended(tmp_path: Path, scripted: Scripted) -> None:
    burn = "if os.fork() == 0:\n    while time.process_time() < 0.5: pass\n    os._exit(0)\nos.wait()"
    become = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    launch = scripted()
    argv = (sys.executable, "-c", f"import os, sys, time\n{burn}\n{become}", *launch.argv[1:])
    with start(replace(launch, argv=argv), tmp_path) as server:
        used = server.cpu_s()
    assert used is not None
    assert used >= 0.5


def test_a_port_that_is_taken_is_tried_again_elsewhere(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(process, "free_port", lambda: next(ports))
        with start(scripted(), tmp_path) as server:
            server.check()


def test_the_log_keeps_every_start_and_its_command(scripted: Scripted, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(EngineError):
            start(scripted(fail="no"), tmp_path)
    log = (tmp_path / "engine.log").read_text()
    assert log.count("scripted_engine.py --model tiny --port 2") + log.count("--port 3") == 2


def test_errors_of_engines_are_errors_of_measuring() -> None:
    assert issubclass(EngineError, MeasurementError)
    error = EngineError("it ended", ["loading", "ValueError: no such format", "shutting down"])
    assert str(error) == "it ended; it said: ValueError: no such format"
    assert str(EngineError("it ended")) == "it ended"


def test_the_line_that_tells_why_is_found_above_those_that_point_to_it() -> None:
    # the order in which vLLM 0.32 speaks
    lines = [
        "(EngineCore pid=7) ERROR RuntimeError: Worker failed with error 'FP8 KV cache on CPU requires AVX-512'",
        *["  frame"] * 40,
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}",
    ]
    error = EngineError("it ended", lines)
    assert "FP8 KV cache on CPU requires AVX-512" in str(error)
    assert len(error.last_lines) == 20
