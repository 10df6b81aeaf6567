"""Running a router: one process, or several that share a port."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from types import FrameType

import uvloop

from qplan.core.errors import InputError
from qplan.router.logs import Log
from qplan.router.process import Process, Serving

_RESTART_S = 0.5
_POLL_S = 0.1


def serve(serving: Serving) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises
    ------
    InputError
        A file is wrong, or the port cannot be had.
    """
    serving.read()
    _allow_connections()
    if serving.processes == 1:
        _run(serving, 0)
    else:
        with tempfile.TemporaryDirectory(prefix="qplan-router-") as folder, _reserved(serving) as reserved:
            _supervise(replace(serving, port=reserved.getsockname()[1], folder=folder))


def _run(serving: Serving, number: int) -> None:
    log = Log(process=number)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_process(serving, number, log))
    except OSError as error:
        raise InputError(f"cannot serve on {serving.host}:{serving.port}: {error.strerror or error}") from None
    finally:
        log.close()


async def _process(serving: Serving, number: int, log: Log) -> None:
    await Process(serving, number, log).run()


def _reserved(serving: Serving) -> socket.socket:
    """Return a socket that holds the port, without listening, for the processes to share."""
    held: socket.socket | None = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        if held is not None:
            held.close()
        raise InputError(f"cannot serve on {serving.host}:{serving.port}: {error.strerror or error}") from None
    return held


def _supervise(serving: Serving) -> None:
    """Keep the processes alive, and pass signals on to them."""
    context = multiprocessing.get_context("spawn")
    stopping = False
    log = Log(process=-1)

    def start(number: int) -> BaseProcess:
        process = context.Process(target=_run, args=(serving, number), name=f"router-{number}")
        process.start()
        return process

    def tell(number: int) -> None:
        for process in running:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = stopping or number != signal.SIGHUP
        tell(signal.SIGTERM if number == signal.SIGINT else number)

    running: list[BaseProcess] = []
    before = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        running += [start(number) for number in range(serving.processes)]
        while not stopping or any(process.is_alive() for process in running):
            time.sleep(_POLL_S)
            for number, process in enumerate(running):
                if not process.is_alive() and not stopping:
                    log.write("process ended", number=number, exit_code=process.exitcode)
                    time.sleep(_RESTART_S)
                    running[number] = start(number)
    finally:
        tell(signal.SIGTERM)
        for one, handler in before.items():
            signal.signal(one, handler)
        log.close()


def _allow_connections() -> None:
    """Raise the soft limit of open files: every stream takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted and sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
