"""One process of the router: its server, its watches, its signals.

SIGTERM (or SIGINT) drains: nothing new is taken, what is under way ends. SIGHUP, or a changed file, reloads policy and
replicas; a file that is wrong changes nothing and is said in the log.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiohttp import web

from qplan.core.errors import QplanError
from qplan.core.policy import Policy
from qplan.measure.load.http1 import HttpError
from qplan.router.answers import json_answer, refusal
from qplan.router.asking import AskError
from qplan.router.dispatch import Dispatcher
from qplan.router.energy import observe
from qplan.router.files import read_policy
from qplan.router.front import Front
from qplan.router.health import standing, sweep, watch
from qplan.router.logs import Log
from qplan.router.metrics import CONNECTIONS, PREDICTED_IDLE, RELOADS, Metrics, Sample, merge, render
from qplan.router.proxy import Proxy
from qplan.router.replicas import Replica, Rest
from qplan.router.settings import Settings, read_settings
from qplan.router.siblings import collect, share
from qplan.router.sleeping import Sleeper, follow, learn
from qplan.router.tracing import tracing

_LOOK_S = 1.0
_BACKLOG = 4096
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Serving:
    """What a router serves, and where.

    Attributes
    ----------
    policy, replicas
        Files.
    processes
        How many share the port.
    folder
        Where the processes share their metrics; empty for a single one.
    """

    policy: Path
    replicas: Path
    host: str
    port: int
    processes: int = 1
    folder: str = ""

    def read(self) -> tuple[Policy, Settings]:
        """Read both files.

        Raises
        ------
        InputError
            One of them is wrong.
        """
        policy = read_policy(self.policy)
        return policy, read_settings(self.replicas, policy)


class Process:
    """One running process of a router."""

    def __init__(self, serving: Serving, number: int, log: Log) -> None:
        policy, settings = serving.read()
        self._serving, self._number, self._log = serving, number, log
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(policy, settings, self.metrics, serving.processes)
        routes: dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            "/v1/models": self._models,
            "/health": self._health,
            "/metrics": self._prometheus,
        }
        self._tracing = tracing(log, number)
        self.proxy = Proxy(self.dispatcher, self.metrics, log, settings.keys, routes, self._tracing)
        self._front: Front
        self._tasks: set[asyncio.Task[None]] = set()
        self._files = _signature(serving)

    async def run(self) -> None:
        """Serve until a signal says to stop, and everything under way has ended."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        serving = self._serving
        self._front = Front(self.proxy, self.dispatcher.limits, self._log)
        runner = web.ServerRunner(self._front, shutdown_timeout=1.0)
        await runner.setup()
        await learn(self.dispatcher.replicas, serving.folder)
        site = web.TCPSite(
            runner, serving.host, serving.port, backlog=_BACKLOG, reuse_port=serving.processes > 1 or None
        )
        await site.start()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        if serving.processes == 1:
            loop.add_signal_handler(signal.SIGINT, stop.set)
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to pass on
        self._spawn(sweep(self.dispatcher))
        self._spawn(self._look(stop))
        if self._number == 0:
            sleeper = Sleeper(self.dispatcher, self.metrics, self._log, serving.folder, self._all_samples)
            self._spawn(sleeper.run())
            self._spawn(observe(self.dispatcher, self.metrics, self._log))
        else:
            self._spawn(follow(self.dispatcher, serving.folder))
        for replica in self.dispatcher.replicas:
            self._spawn(watch(replica, self.dispatcher, self._log))
        shared = await share(serving.folder, self._number, self._samples) if serving.folder else None
        gc.collect()
        gc.freeze()  # what is there now stays; the collector need not look through it in mid-stream
        gc.set_threshold(10_000, 20, 20)  # requests leave hardly a cycle behind; memory is bounded by the limits
        self._log.write("listening", url=f"http://{serving.host}:{runner.addresses[0][1]}", pid=os.getpid())
        await stop.wait()
        await self._drain(site)
        if shared is not None:
            shared.close()
        for task in self._tasks:
            task.cancel()
        await runner.cleanup()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def reload(self) -> None:
        """Take on what the files say now."""
        self._files = _signature(self._serving)
        try:
            policy, settings = self._serving.read()
        except QplanError as error:
            self._log.write("reload", outcome="refused", reason=str(error))
            self.metrics.add(RELOADS, outcome="refused")
            return
        new = self.dispatcher.apply(policy, settings)
        self._spawn(self._join(new))
        for replica in new:
            self._spawn(watch(replica, self.dispatcher, self._log))
        self.proxy.keys = settings.keys
        self._log.write("reload", outcome="done", replicas=len(settings.replicas), policy=policy.name)
        self.metrics.add(RELOADS, outcome="done")

    async def _join(self, new: list[Replica]) -> None:
        """Find out which replicas that a reload brought are awake."""
        await learn(new, self._serving.folder)
        self.dispatcher.wake()

    async def _drain(self, site: web.TCPSite) -> None:
        """Take nothing new, and wait for what is under way; what lasts too long ends with an error event."""
        self.proxy.draining = True
        self._log.write("draining", under_way=self.proxy.under_way)
        await site.stop()
        self._front.pre_shutdown()
        until_s = time.monotonic() + self.dispatcher.limits.drain
        while self.proxy.under_way and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        if self.proxy.under_way:
            self.proxy.break_off(HttpError("the router is shutting down"))
            await asyncio.sleep(0.5)
        self._log.write("stopped", under_way=self.proxy.under_way)

    async def _look(self, stop: asyncio.Event) -> None:
        """Reload when a file has changed, and stop when the parent is gone."""
        parent = os.getppid()
        while True:
            await asyncio.sleep(_LOOK_S)
            if _signature(self._serving) != self._files:
                self.reload()
            if self._serving.processes > 1 and os.getppid() != parent:
                stop.set()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._log.write("bug", message="a watch ended", error=repr(error))
                raise

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _samples(self) -> bytes:
        self.dispatcher.measure()
        if self._number == 0:  # the others would add to it
            for replica in self.dispatcher.replicas:
                group = self.dispatcher.policy.groups[replica.state.group]
                watts = group.asleep_w if replica.rest is Rest.ASLEEP else group.idle_w
                if watts is not None:
                    self.metrics.set(PREDICTED_IDLE, watts, replica=replica.name, group=group.name)
        self.metrics.set(CONNECTIONS, self._front.open)
        return orjson.dumps(self.metrics.samples())

    async def _all_samples(self) -> list[Sample]:
        own = orjson.loads(self._samples())
        others = await collect(self._serving.folder, self._number) if self._serving.folder else []
        return merge([own, *others])

    async def _prometheus(self, _request: web.BaseRequest) -> web.StreamResponse:
        text = render(await self._all_samples())
        return web.Response(body=text.encode(), headers={"Content-Type": _PROMETHEUS})

    async def _health(self, _request: web.BaseRequest) -> web.StreamResponse:
        replicas = {replica.name: standing(replica) for replica in self.dispatcher.replicas}
        well = not self.proxy.draining and any(state != "down" for state in replicas.values())
        status = "ok" if well else "draining" if self.proxy.draining else "no replica is available"
        return json_answer({"status": status, "replicas": replicas}, 200 if well else 503)

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self.proxy.keys.admit(request.headers.get("Authorization")):
            return refusal(AskError(401, "the API key is missing or wrong", "invalid_api_key"))
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "qplan"} for name in self.dispatcher.models]
        return json_answer({"object": "list", "data": models})


def _signature(serving: Serving) -> tuple[tuple[int, int], ...]:
    """Return what changes with the files."""
    found = []
    for path in (serving.policy, serving.replicas):
        try:
            about = path.stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((about.st_mtime_ns, about.st_size))
    return tuple(found)
