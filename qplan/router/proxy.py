"""The proxy: what a client asks goes to a replica, and what that answers goes back, piece by piece as it comes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from qplan.measure.load.http1 import HttpError
from qplan.router.admission import Admission
from qplan.router.answers import refusal
from qplan.router.asking import PATHS, Ask, AskError, read_ask
from qplan.router.attempt import AttemptError, Reply, attempt
from qplan.router.dispatch import Dispatcher
from qplan.router.events import StreamError, error_event
from qplan.router.logs import Log
from qplan.router.metrics import ATTEMPTS, E2E, HELD, REQUESTS, TOKENS, TPOT, TPOT_RATIO, TTFT, TTFT_RATIO, Metrics
from qplan.router.replicas import Flight, Replica
from qplan.router.settings import ApiKeys
from qplan.router.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CLASS_FIELD, SESSION_FIELD, REPLICA_FIELD = "x-qplan-class", "x-session-id", "x-qplan-replica"
_OWN_FIELDS = frozenset(
    {
        "connection", "content-length", "date", "keep-alive", "proxy-authenticate", "proxy-connection", "server",
        "set-cookie", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_MOST_UNREAD_BYTES = 2**17
_UNREAD_S = 0.01
_OTHER_SAY = {404: "not_found", 405: "method_not_allowed"}


@dataclass(slots=True, eq=False)
class Record:
    """What is said of one request in log and metrics when it is over; every request ends in exactly one outcome.

    Attributes
    ----------
    outcome
        ``ok``; ``status`` (a replica's refusal, passed on); ``broken`` (failed after its first event, ended with an
        error event); ``failed`` (no replica answered); ``shed`` (429); ``unavailable`` (503); ``refused`` (not a
        request that is served); ``left`` (its client went away).
    flight
        Its latest.
    span, fields
        Its span, where spans are made, and the header fields that carry it.
    """

    arrived_s: float
    outcome: str = "left"
    status: int = 0
    request_class: str = ""
    replica: str = ""
    reason: str = ""
    attempts: int = 0
    flight: Flight | None = None
    span: Any = None
    fields: bytes = b""


class _Streamed(web.StreamResponse):
    _send_headers_immediately = False  # the first event is there already, and goes out with them


class Proxy:
    """Answers requests of clients; one a process.

    Parameters
    ----------
    extra
        Answers on other routes, by path: health, metrics, models.
    tracing
        Makes spans of requests; ``None``: there are none.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: Metrics,
        log: Log,
        keys: ApiKeys,
        extra: dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]],
        tracing: Tracing | None = None,
    ) -> None:
        self.keys = keys
        self.draining = False
        self.admission = Admission()
        self._dispatcher, self._metrics, self._log = dispatcher, metrics, log
        self._extra, self._tracing = extra, tracing
        self._open: set[Record] = set()

    @property
    def under_way(self) -> int:
        """Requests that are not over."""
        return len(self._open)

    def break_off(self, error: HttpError) -> None:
        """End what is under way: streams that have begun with an error event."""
        for flight in self._dispatcher.flights():
            if flight.connection is not None:
                flight.connection.fail(error)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever it is."""
        path = request.path
        if path in PATHS and request.method == "POST":
            return await self._complete(request, path)
        found = self._extra.get(path)
        if found is not None and request.method in ("GET", "HEAD"):
            return await found(request)
        status = 405 if path in PATHS or found is not None else 404
        return refusal(AskError(status, f"no route {request.method} {path[:100]}", _OTHER_SAY[status]))

    async def _complete(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        record = Record(time.perf_counter())
        if self._tracing is not None:
            record.span, record.fields = self._tracing.begin(path, request.headers)
        self._open.add(record)
        try:
            return await self._answered(request, path, record)
        except AskError as error:
            record.outcome = {429: "shed", 502: "failed", 503: "unavailable"}.get(error.status, "refused")
            record.status, record.reason = error.status, error.message
            late = error.status in (429, 503)
            answer = refusal(error, self._dispatcher.retry_after_s() if late else None)
            if self.draining or error.status in (408, 413):
                answer.force_close()
            return answer
        except ConnectionError:
            record.outcome = "left"
            raise
        finally:
            self._open.discard(record)
            self._account(record)

    async def _answered(self, request: web.BaseRequest, path: str, record: Record) -> web.StreamResponse:
        if not self.keys.admit(request.headers.get("Authorization")):
            raise AskError(401, "the API key is missing or wrong", "invalid_api_key")
        if self.draining:
            raise AskError(503, "this router is shutting down", "shutting_down")
        dispatcher = self._dispatcher
        request_class = request.headers.get(CLASS_FIELD) or dispatcher.classes[0]
        if request_class not in dispatcher.classes:
            known = ", ".join(dispatcher.classes)
            raise AskError(400, f"unknown class in {CLASS_FIELD}; expected one of {known}", "unknown_class")
        record.request_class = request_class
        body = await self.admission.take(request, dispatcher.limits)
        try:
            ask = read_ask(path, body, request.headers.get(SESSION_FIELD, ""))
            if not dispatcher.serves(ask.model):
                known = ", ".join(dispatcher.models)
                raise AskError(404, f"unknown model '{ask.model[:100]}'; expected one of {known}", "model_not_found")
            flight, reply = await self._opened(ask, request_class, record)
            try:
                return await self._passed_on(request, flight, reply, record)
            finally:
                dispatcher.ended(flight)
        finally:
            self.admission.give_back(body)

    async def _opened(self, ask: Ask, request_class: str, record: Record) -> tuple[Flight, Reply]:
        """Ask replicas in turn until one answers; return the flight, still open, and its reply.

        Raises
        ------
        AskError
            None did.
        """
        dispatcher = self._dispatcher
        tried: set[Replica] = set()
        arrived_s = time.monotonic()
        while True:
            flight = await dispatcher.pick(ask, request_class, arrived_s, tried)
            replica, keep = flight.replica, False
            record.replica, record.flight, flight.fields = replica.name, flight, record.fields
            if not record.attempts:
                self._metrics.observe(HELD, time.perf_counter() - record.arrived_s)
            try:
                reply = await attempt(flight, dispatcher.limits)
                replica.begun(flight)
                record.attempts += 1
                keep = True
                return flight, reply
            except AttemptError as failure:
                tried.add(replica)
                record.attempts += not failure.unseen
                self._blame(replica, failure)
                record.reason = f"{replica.name}: {failure.reason}"
                again = record.attempts < dispatcher.limits.attempts
                if failure.reply is not None and not (again and dispatcher.untried(tried)):
                    keep = True
                    return flight, failure.reply
                if not again:
                    raise AskError(502, "no replica answered", "upstream_failed") from None
            finally:
                if not keep:
                    if flight.first_s == 0.0:
                        replica.breaker.forget()
                    dispatcher.unanswered(flight)

    def _blame(self, replica: Replica, failure: AttemptError) -> None:
        now_s, before = time.monotonic(), replica.breaker.state
        if failure.unseen:
            replica.breaker.trip()
        elif failure.blamed:
            replica.breaker.fail(now_s)
        else:
            replica.breaker.forget()
        self._metrics.add(ATTEMPTS, replica=replica.name, group=replica.address.group, outcome="failed")
        if replica.breaker.state is not before:
            self._log.write("circuit", replica=replica.name, state=replica.breaker.state, reason=failure.reason)

    async def _passed_on(
        self, request: web.BaseRequest, flight: Flight, reply: Reply, record: Record
    ) -> web.StreamResponse:
        fields = {name: value for name, value in reply.fields.items() if name not in _OWN_FIELDS}
        fields["Server"] = "qplan"
        fields[REPLICA_FIELD] = flight.replica.name
        record.status = reply.status
        labels = {"replica": flight.replica.name, "group": flight.replica.address.group}
        if not reply.goes_on:
            record.outcome = "ok" if reply.status == 200 else "status"
            self._metrics.add(ATTEMPTS, **labels, outcome=record.outcome)
            if reply.status == 200:
                self._answer_done(flight, labels, record)
            return web.Response(status=reply.status, headers=fields, body=reply.body)
        response = _Streamed(status=reply.status, headers=fields)
        flight.client = request.transport
        await response.prepare(request)
        try:
            await self._relay(response, flight, reply.body)
            record.outcome = "ok"
        except (HttpError, OSError, StreamError) as error:
            if isinstance(error, ConnectionError) and flight.writing:
                raise  # the client's end, not the replica's
            record.outcome, record.reason = "broken", f"{flight.replica.name}: {error}"
            await self._end_broken(response, flight, str(error))
        self._metrics.add(ATTEMPTS, **labels, outcome=record.outcome)
        if record.outcome == "ok":
            self._answer_done(flight, labels, record)
        return response

    async def _relay(self, response: web.StreamResponse, flight: Flight, first: bytes) -> None:
        """Pass on an answer that has begun, to its end.

        Chunks after the first are written where they are read: at thousands of them a second, waking a task for each
        would cost more than all the rest.
        """
        connection, client, events = flight.connection, flight.client, flight.events
        assert connection is not None
        assert client is not None
        chunked, streamed = response.headers.get("Transfer-Encoding") == "chunked", flight.ask.stream
        now = time.perf_counter

        last = b""

        def pass_on(piece: bytes) -> bool:
            nonlocal last
            flight.last_s = now()
            data = events.feed(piece) if streamed else piece
            if data and connection.complete and events.broken is None:
                last += data  # goes out together with the end
            elif data:
                client.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if events.broken is not None:
                raise events.broken
            return client.get_write_buffer_size() < _MOST_UNREAD_BYTES

        assert first  # what follows does not go through `response`, which holds the head back until now
        flight.writing = True
        await response.write(first)
        flight.writing = False
        if events.broken is not None:
            raise events.broken
        while not await connection.pour(pass_on):
            flight.writing = True
            while client.get_write_buffer_size() > _MOST_UNREAD_BYTES / 2:
                await asyncio.sleep(_UNREAD_S)
            flight.writing = False
        flight.writing = True
        if events.error:
            await response.write(last + events.held)
            raise StreamError(events.error)
        await response.write_eof(last + events.held)

    async def _end_broken(self, response: web.StreamResponse, flight: Flight, reason: str) -> None:
        """End a stream that cannot go on, so that the client knows."""
        flight.replica.breaker.fail(time.monotonic())
        if flight.ask.stream:
            if not flight.events.error:  # the engine has not said so itself
                await response.write(error_event(f"the stream broke off: {reason}", "stream_broken"))
        else:
            response.force_close()
        await response.write_eof()

    def _answer_done(self, flight: Flight, labels: dict[str, str], record: Record) -> None:
        """Learn from an answer that is complete."""
        events, choice, metrics = flight.events, flight.choice, self._metrics
        metrics.add(TOKENS, events.prompt_tokens or flight.request.input_tokens, **labels, kind="prompt")
        metrics.add(TOKENS, events.tokens, **labels, kind="completion")
        metrics.observe(E2E, time.perf_counter() - record.arrived_s, **labels)
        if not flight.ask.stream:
            return
        ttft_s = flight.first_s - flight.sent_s
        tpot_s = (flight.last_s - flight.first_s) / (events.tokens - 1) if events.tokens > 1 else None
        metrics.observe(TTFT, ttft_s, **labels)
        if choice.ttft_s > 0:
            metrics.observe(TTFT_RATIO, ttft_s / choice.ttft_s, **labels)
        if tpot_s is not None:
            metrics.observe(TPOT, tpot_s, **labels)
            if choice.tpot_s > 0:
                metrics.observe(TPOT_RATIO, tpot_s / choice.tpot_s, **labels)
        self._dispatcher.learn(flight, events.prompt_tokens, ttft_s, tpot_s)

    def _account(self, record: Record) -> None:
        self._metrics.add(REQUESTS, outcome=record.outcome)
        if self._tracing is not None:
            self._tracing.end(record.span, record)
        self._log.write(
            "request",
            outcome=record.outcome,
            status=record.status,
            request_class=record.request_class,
            replica=record.replica,
            attempts=record.attempts,
            seconds=round(time.perf_counter() - record.arrived_s, 6),
            **({"reason": record.reason} if record.reason else {}),
        )
