"""A replica as the router sees it: what is under way there, whether it answers, and what it says of itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum

from qplan.measure.load.http1 import HttpError
from qplan.router.asking import Ask
from qplan.router.breaker import Breaker
from qplan.router.connection import Connection
from qplan.router.events import Events
from qplan.router.settings import ReplicaAddress
from qplan.router.upstream import Upstream
from qplan.solvers.routing.online import Choice, OnlineRule, ReplicaState, Request


class Rest(StrEnum):
    """Whether a replica is awake; nothing is sent to one that is not."""

    AWAKE = "awake"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(slots=True, eq=False)
class Flight:
    """One request under way at a replica; times on :func:`time.perf_counter`.

    Attributes
    ----------
    choice
        Why it is there: what the policy expects of it.
    rule
        Which chose, and keeps the ledgers; a reload brings another.
    waiting_tokens
        Prompt tokens that have yet to be worked off before its first token.
    first_s, last_s
        When its first event and its latest bytes came; 0 before.
    writing
        Whether the client is waited for, to read what came.
    fields
        Header fields that go to the replica beside its own.
    """

    ask: Ask
    replica: Replica
    request: Request
    choice: Choice
    rule: OnlineRule
    sent_s: float
    waiting_tokens: float
    first_s: float = 0.0
    last_s: float = 0.0
    writing: bool = False
    connection: Connection | None = None
    events: Events = field(default_factory=Events)
    client: asyncio.Transport | None = None
    fields: bytes = b""


class Replica:
    """One replica: its address, connections, circuit, and the state by which the policy chooses.

    Attributes
    ----------
    state
        What the policy reads.
    flights
        Requests under way there.
    leaving
        It was taken out of the fleet; nothing more is sent there.
    rest
        Whether it is awake.
    """

    def __init__(self, address: ReplicaAddress, group: int) -> None:
        self.address = address
        self.upstream = Upstream(address.url, address.api_key)
        self.breaker = Breaker()
        self.state = ReplicaState(group=group)
        self.flights: set[Flight] = set()
        self.leaving = False
        self.rest = Rest.AWAKE if address.sleep is None else Rest.WAKING  # until it is known
        self.others = 0

    @property
    def name(self) -> str:
        """Its name in the router's file."""
        return self.address.name

    def admits(self, now_s: float) -> bool:
        """Whether a request may be sent there now."""
        return self.serves(now_s) and len(self.flights) < self.address.in_flight

    def serves(self, now_s: float) -> bool:
        """Whether a request may be sent there once there is room."""
        return self.rest is Rest.AWAKE and not self.leaving and self.breaker.admits(now_s)

    def begin(self, ask: Ask, request: Request, choice: Choice, rule: OnlineRule) -> Flight:
        """Take note of a request that is about to be sent there."""
        cached = request.cached_tokens if choice.replica == request.home else 0
        flight = Flight(ask, self, request, choice, rule, time.perf_counter(), max(0, request.input_tokens - cached))
        self.flights.add(flight)
        self.breaker.begin()
        self.state.in_flight += 1
        self.state.waiting_tokens += flight.waiting_tokens
        self.state.held_tokens += choice.expected_tokens
        return flight

    def begun(self, flight: Flight) -> None:
        """Take note of the first event of its answer."""
        flight.first_s = flight.last_s = time.perf_counter()
        self.state.waiting_tokens -= flight.waiting_tokens
        flight.waiting_tokens = 0.0
        self.breaker.succeed()

    def end(self, flight: Flight) -> None:
        """Take note of its end; closes its connection, and so the request at the engine, unless it is over."""
        self.flights.discard(flight)
        state = self.state
        state.in_flight -= 1
        state.waiting_tokens -= flight.waiting_tokens
        flight.waiting_tokens = 0.0
        state.held_tokens -= flight.choice.expected_tokens
        if state.in_flight <= self.others:  # nothing of ours is there: what adding and subtracting left over goes, too
            state.waiting_tokens = state.held_tokens = 0.0
        if flight.connection is not None:
            self.upstream.release(flight.connection)
            flight.connection = None

    def seen_by_engine(self, in_flight: float | None) -> None:
        """Take what the engine says is under way there: what other routers sent counts, too."""
        others = max(0, round(in_flight) - len(self.flights)) if in_flight is not None else 0
        self.state.in_flight += others - self.others
        self.others = others

    def give_up(self, error: HttpError) -> None:
        """Take from it the requests that have no answer yet: they go elsewhere."""
        for flight in list(self.flights):
            if not flight.first_s and flight.connection is not None:
                flight.connection.fail(error)
