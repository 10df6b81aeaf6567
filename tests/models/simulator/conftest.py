"""A made-up replica, and the simulator's model as plain Python that runs every iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from qplan.models.iterations import IterationGrid
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.traffic import Traffic


def made_up_grid(seed: int = 0) -> IterationGrid:
    """Times that rise along every axis, by uneven steps."""
    random = np.random.default_rng(seed)
    tokens = np.array([0.0, 1, 16, 64, 256, 2048])
    batches = np.array([0.0, 1, 3, 8, 64])
    contexts = np.array([16.0, 64, 200, 1000])
    time = np.zeros((6, 5, 4))
    for axis, scale in ((0, 4e-3), (1, 2e-3), (2, 5e-4)):
        time = time + np.cumsum(random.uniform(0.2, 1.0, time.shape) * scale, axis=axis)
        time = np.maximum.accumulate(time, axis=axis)
    for axis in range(3):
        time = np.maximum.accumulate(time, axis=axis)
    time[0, 0] = 0.0
    return IterationGrid(tokens, batches, contexts, time)


def made_up_replica(
    batching: Batching | None = None, *, kv_tokens: int = 100_000, seed: int = 0, weight: float = 1.0
) -> Replica:
    grid = made_up_grid(seed)
    watts = 100 + 5 * np.indices(grid.time_s.shape).sum(axis=0).astype(float)
    return Replica(
        f"made up {seed}", grid, kv_tokens, 4096, batching or Batching(256, 8, 16), weight, power_w=watts, idle_w=60.0
    )


@dataclass
class Sequence:
    row: int
    arrival_s: float
    prompt: int
    output: int
    generated: int = 0
    computed: int = 0
    decoding: bool = False
    preemptions: int = 0
    first_s: float = float("nan")
    end_s: float = float("nan")

    @property
    def length(self) -> int:
        return self.prompt + self.generated


@dataclass
class Engine:
    """One replica, one iteration after the other; what is computed, not how, is what the simulator does."""

    replica: Replica
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    now_s: float = 0.0
    busy_s: float = 0.0
    iterations: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def energy_j(self) -> float:
        """Joules of all iterations: time x watts at the points of the grid, read like the times."""
        watts = self.replica.power_w
        assert watts is not None
        joules = replace(self.replica.times, time_s=self.replica.times.time_s * watts)
        return float(joules.at(*np.array(self.iterations).T).sum())

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.replica.batching.block_tokens)

    @property
    def free(self) -> int:
        held = sum(self.blocks(one.computed) for one in self.running)
        return self.replica.kv_tokens // self.replica.batching.block_tokens - held

    def preempt(self) -> None:
        victim = self.running.pop()
        victim.computed, victim.decoding = 0, False
        victim.preemptions += 1
        self.waiting.insert(0, victim)

    def make_room(self) -> bool:
        """Give each decoding sequence a place for a token, in order; the last one goes while there is none."""
        preempted, granted, n = False, 0, 0
        while n < len(self.running):
            one = self.running[n]
            need = self.blocks(one.computed + 1) - self.blocks(one.computed) if one.decoding else 0
            while need and self.free - granted < need and len(self.running) > n:
                self.preempt()
                preempted = True
            if len(self.running) == n:
                break
            granted += need
            n += 1
        return preempted

    def iterate(self) -> None:
        batching = self.replica.batching
        chunks: list[tuple[Sequence, int]] = []
        decoding: list[Sequence] = []
        if batching.chunked_prefill:
            preempted = self.make_room()
            decoding = [one for one in self.running if one.decoding]
            granted = sum(self.blocks(one.computed + 1) - self.blocks(one.computed) for one in decoding)
            budget = batching.max_batched_tokens - len(decoding)
            for one in [one for one in self.running if not one.decoding]:
                chunk = min(one.length - one.computed, budget)
                if self.blocks(one.computed + chunk) - self.blocks(one.computed) > self.free - granted:
                    self.preempt()
                    preempted = True
                else:
                    chunks.append((one, chunk))
                    granted += self.blocks(one.computed + chunk) - self.blocks(one.computed)
                    budget -= chunk
            while not preempted and self.waiting and len(self.running) < batching.max_sequences and budget > 0:
                one = self.waiting[0]
                if self.blocks(one.length) > self.free - granted:
                    break
                chunk = min(one.length, budget)
                self.running.append(self.waiting.pop(0))
                chunks.append((one, chunk))
                granted += self.blocks(chunk)
                budget -= chunk
        else:
            granted = tokens = 0
            while self.waiting and len(self.running) < batching.max_sequences:
                one = self.waiting[0]
                too_many = tokens > 0 and tokens + one.length > batching.max_batched_tokens
                if self.blocks(one.length) > self.free - granted or too_many:
                    break
                self.running.append(self.waiting.pop(0))
                chunks.append((one, one.length))
                granted += self.blocks(one.length)
                tokens += one.length
            if not chunks:
                self.make_room()
                decoding = list(self.running)
        self.pass_time(chunks, decoding)
        for one, chunk in chunks:
            one.computed += chunk
        for one in decoding:
            one.computed += 1
        for one in decoding + [one for one, _ in chunks if one.computed == one.length]:
            one.decoding = True
            if one.generated == 0:
                one.first_s = self.now_s
            one.generated += 1
            if one.generated == one.output:
                one.end_s = self.now_s
                self.running.remove(one)

    def advance(self, until_s: float) -> None:
        """Run the iterations that begin before `until_s`."""
        while self.now_s < until_s and (self.waiting or self.running):
            self.iterate()

    def pass_time(self, chunks: list[tuple[Sequence, int]], decoding: list[Sequence]) -> None:
        cached = float(sum(one.computed for one in decoding))
        self.iterations.append((float(sum(chunk for _, chunk in chunks)), float(len(decoding)), cached))
        time_s = float(self.replica.times.at(*np.array(self.iterations[-1:]).T)[0])
        self.now_s += time_s
        self.busy_s += time_s


def step_by_step(traffic: Traffic, replica: Replica) -> tuple[list[Sequence], Engine]:
    """Serve `traffic` with one replica; requests that cannot fit keep NaN."""
    columns = (traffic.arrivals_s, traffic.input_tokens, traffic.output_tokens)
    requests = [Sequence(row, float(a), int(i), int(o)) for row, (a, i, o) in enumerate(zip(*columns, strict=True))]
    engine = Engine(replica)
    limit = replica.kv_tokens // replica.batching.block_tokens
    coming = [
        one
        for one in requests
        if one.prompt + one.output <= replica.max_context and engine.blocks(one.prompt + one.output - 1) <= limit
    ]
    while coming or engine.waiting or engine.running:
        if not engine.waiting and not engine.running:
            engine.now_s = max(engine.now_s, coming[0].arrival_s)
        while coming and coming[0].arrival_s <= engine.now_s:
            engine.waiting.append(coming.pop(0))
        engine.iterate()
    return requests, engine


def fleet_step_by_step(
    traffic: Traffic, fleet: list[Replica], choose: Callable[[int, list[int]], int | None]
) -> tuple[list[Sequence], list[int | None]]:
    """Serve `traffic` with replicas that all go on, step by step, to each arrival.

    `choose` gets the row of a request and how many each replica has in flight, and says which one takes it.
    """
    engines, given = [Engine(replica) for replica in fleet], [list[Sequence]() for _ in fleet]
    chosen: list[int | None] = []
    columns = (traffic.arrivals_s, traffic.input_tokens, traffic.output_tokens)
    requests = [Sequence(row, float(a), int(i), int(o)) for row, (a, i, o) in enumerate(zip(*columns, strict=True))]
    for one in requests:
        for engine in engines:
            engine.advance(one.arrival_s)
        in_flight = [sum(not other.end_s <= one.arrival_s for other in mine) for mine in given]
        chosen.append(choose(one.row, in_flight))
        if chosen[-1] is not None:
            given[chosen[-1]].append(one)
            engine = engines[chosen[-1]]
            engine.now_s = max(engine.now_s, one.arrival_s)
            engine.waiting.append(one)
    for engine in engines:
        engine.advance(np.inf)
    return requests, chosen


def random_traffic(
    seed: int, requests: int, rate_qps: float, longest_prompt: int = 400, longest_output: int = 60
) -> Traffic:
    random = np.random.default_rng(seed)
    return Traffic(
        np.cumsum(random.exponential(1 / rate_qps, requests)),
        random.integers(1, longest_prompt, requests),
        random.integers(1, longest_output, requests),
    )


@pytest.fixture
def made_up() -> Callable[..., Replica]:
    """Makes replicas."""
    return made_up_replica


@pytest.fixture
def traffic_of() -> Callable[..., Traffic]:
    """Draws requests: seed, number and rate."""
    return random_traffic


@pytest.fixture(name="step_by_step")
def step_by_step_fixture() -> Callable[[Traffic, Replica], tuple[list[Sequence], Engine]]:
    """Serves traffic in plain Python."""
    return step_by_step


@pytest.fixture(name="fleet_step_by_step")
def fleet_step_by_step_fixture() -> Callable[..., tuple[list[Sequence], list[int | None]]]:
    """Serves traffic with a fleet in plain Python."""
    return fleet_step_by_step
