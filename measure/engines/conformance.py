"""What every engine adapter must pass.

A package that brings an engine tests it so, on a machine that can run it::

    from qplan.measure.engines.conformance import EngineConformance

    class TestMine(EngineConformance):
        name = "mine"
        serving = Serving("tiny", "path/of/weights", Quantization.parse("FP16"), context_tokens=512, max_sequences=2)
        refused = Serving("tiny", "path/of/weights", Quantization.parse("W4A8"))

The engine is started four times.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from qplan.measure.engines import open_engine
from qplan.measure.engines.contract import Engine, EngineError, Prepared, Server, Serving
from qplan.measure.engines.readiness import complete

_NOTICE_S = 10.0


class EngineConformance:
    """Tests of one adapter, to be collected by pytest from a subclass that sets `name`, `serving` and `refused`.

    Attributes
    ----------
    name
        What :func:`~qplan.measure.engines.open_engine` is called with.
    serving
        Something that the engine can serve here.
    refused
        Something that it cannot serve anywhere.
    deadline_s
        Time in which it starts, with room.
    """

    name: str
    serving: Serving
    refused: Serving
    deadline_s = 120.0

    @pytest.fixture(scope="class")
    @classmethod
    def engine(
        cls,
    ) -> Engine:
        """Return the adapter."""
        return open_engine(cls.name)

    @pytest.fixture(scope="class")
    @classmethod
    def cache(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return the folder of prepared weights."""
        return tmp_path_factory.mktemp("cache")

    @pytest.fixture(scope="class")
    @classmethod
    def prepared(cls, engine: Engine, cache: Path) -> Prepared:
        """Prepare the weights."""
        return engine.prepare(cls.serving, cache)

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, engine: Engine, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        """Start a server that several tests ask."""
        folder = tmp_path_factory.mktemp("server")
        with engine.start(cls.serving, prepared, folder, deadline_s=cls.deadline_s) as server:
            yield server

    def test_its_name_opens_it(self, engine: Engine) -> None:
        """The name that opens the adapter is the name it carries, and it knows its version."""
        assert engine.name == self.name
        assert engine.version()

    def test_it_refuses_in_one_line_what_it_cannot_serve(self, engine: Engine) -> None:
        """A refusal is a reason; what can be served has none."""
        assert engine.refusal(self.serving) is None
        refusal = engine.refusal(self.refused)
        assert refusal
        assert "\n" not in refusal

    def test_a_setting_that_it_does_not_know_is_not_ignored(
        self, engine: Engine, prepared: Prepared, tmp_path: Path
    ) -> None:
        """A mistyped setting must not be measured as if it were set: it is refused, or the engine does not start."""
        mistyped = replace(self.serving, settings={"no-such-setting": 1})
        refusal = engine.refusal(mistyped)
        if refusal is None:
            with pytest.raises(EngineError, match="no-such-setting"):
                engine.start(mistyped, prepared, tmp_path, deadline_s=self.deadline_s).stop()
        else:
            assert "no-such-setting" in refusal

    def test_prepared_weights_are_found_again(self, engine: Engine, prepared: Prepared, cache: Path) -> None:
        """Preparing twice writes nothing and gives the same answer."""
        before = _files(cache)
        assert engine.prepare(self.serving, cache) == prepared
        assert _files(cache) == before
        assert prepared.recipe
        assert prepared.bits_per_weight is None or 0 < prepared.bits_per_weight <= 32

    def test_it_serves_the_model_by_its_name(self, server: Server) -> None:
        """The endpoint answers a completion."""
        assert complete(server.endpoint, "One, two, three,", max_tokens=4, timeout_s=60)
        assert server.version

    def test_it_tells_its_state(self, server: Server) -> None:
        """It says that it is idle soon after the last answer, and how full its cache is."""
        server.check()
        deadline = time.perf_counter() + _NOTICE_S
        while (state := server.state()).running and time.perf_counter() < deadline:
            time.sleep(0.1)
        assert state.running in (None, 0)
        assert state.waiting in (None, 0)
        assert state.kv_usage is None or 0 <= state.kv_usage <= 1

    def test_its_cpu_time_grows(self, server: Server) -> None:
        """The CPU time of all its processes is seen, where there are any."""
        before = after = server.cpu_s()
        assert (before is None) == (server.pid is None)
        deadline = time.perf_counter() + _NOTICE_S
        while before is not None and after == before and time.perf_counter() < deadline:
            complete(server.endpoint, "One, two, three, " * 20, max_tokens=16, timeout_s=60)
            after = server.cpu_s()
        assert before is None or (after is not None and after > before)

    def test_its_command_and_process_are_known(self, server: Server) -> None:
        """The command is a list of arguments and the process leads its group."""
        assert all(isinstance(argument, str) for argument in server.command)
        if server.pid is not None:
            assert server.command
            assert os.getpgid(server.pid) == server.pid
            assert len(server.last_lines(1)) == 1

    def test_a_deadline_that_passes_leaves_no_process(self, engine: Engine, prepared: Prepared, tmp_path: Path) -> None:
        """An engine that is not ready in time is ended."""
        before = _descendants()
        with pytest.raises(EngineError):
            engine.start(self.serving, prepared, tmp_path, deadline_s=0.01).stop()
        assert _descendants() <= before

    def test_weights_that_are_not_there_are_an_error_with_last_lines(self, engine: Engine, tmp_path: Path) -> None:
        """An engine that dies at its start says why, and leaves no process."""
        before = _descendants()
        missing = Prepared(str(tmp_path / "missing"), None, "none")
        with pytest.raises(EngineError) as error:
            engine.start(self.serving, missing, tmp_path, deadline_s=self.deadline_s).stop()
        assert error.value.last_lines
        assert _descendants() <= before

    def test_a_killed_server_is_noticed_and_leaves_no_process(
        self, engine: Engine, prepared: Prepared, tmp_path: Path
    ) -> None:
        """SIGKILL of the server is seen by the next check; stopping what is dead, even twice, is no error."""
        before = _descendants()
        server = engine.start(self.serving, prepared, tmp_path, deadline_s=self.deadline_s)
        try:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(EngineError):
                _check_until_it_raises(server)
        finally:
            server.stop()
        server.stop()
        assert _descendants() <= before

    def test_it_does_not_outlive_a_killed_qplan(self, engine: Engine, prepared: Prepared, tmp_path: Path) -> None:
        """SIGKILL of the process that started the server ends the server and all its processes."""
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        arguments = (engine, self.serving, prepared, tmp_path, self.deadline_s, there)
        parent = spawn.Process(target=_start_and_wait, args=arguments, daemon=True)
        parent.start()
        there.close()
        assert here.poll(self.deadline_s)
        started = [psutil.Process(pid) for pid in here.recv()]
        assert len(started) > 0
        parent.kill()
        parent.join()
        parent.close()
        assert left_after(started, _NOTICE_S) == []


def left_after(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait at most `seconds` for `processes` to end; returns those that run on. A zombie has ended."""
    deadline = time.perf_counter() + seconds
    while (left := [process for process in processes if runs(process)]) and time.perf_counter() < deadline:
        time.sleep(0.1)
    return left


def runs(process: psutil.Process) -> bool:
    """Whether a process exists and is no zombie."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _start_and_wait(
    engine: Engine, serving: Serving, prepared: Prepared, folder: Path, deadline_s: float, to: Connection
) -> None:
    """Start a server, tell the ids of all processes that this made, and wait to be killed."""
    engine.start(serving, prepared, folder, deadline_s=deadline_s)
    to.send([process.pid for process in psutil.Process().children(recursive=True)])
    signal.pause()


def _check_until_it_raises(server: Server) -> None:
    deadline = time.perf_counter() + _NOTICE_S
    while time.perf_counter() < deadline:
        server.check()
        time.sleep(0.1)


def _descendants() -> set[psutil.Process]:
    return {process for process in psutil.Process().children(recursive=True) if runs(process)}


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}
