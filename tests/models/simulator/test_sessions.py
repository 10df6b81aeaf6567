"""Prefixes of sessions that replicas keep in free blocks of their KV cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qplan.core import InputError
from qplan.models.simulator.dispatch import Dispatch, Split
from qplan.models.simulator.replica import Batching, Replica
from qplan.models.simulator.simulation import Simulation, run, simulate
from qplan.models.simulator.traffic import Traffic

Make = Callable[..., Replica]


def turns(*rows: tuple[float, int, int, int]) -> Traffic:
    """Return requests of (arrival, input, output, session)."""
    at, given, made, session = zip(*rows, strict=True)
    none = np.zeros(len(rows), np.int64)
    return Traffic(np.array(at), np.array(given), np.array(made), none, np.array(session))


@pytest.mark.parametrize("chunked", [True, False])
def test_a_turn_prefills_what_is_new(chunked: bool, made_up: Make) -> None:
    replica = made_up(Batching(512, 4, 16, chunked_prefill=chunked), kv_tokens=4096)
    traffic = turns((0.0, 100, 30, 0), (100.0, 300, 10, 0), (200.0, 300, 10, -1))
    served = simulate(traffic, [replica])
    # 129 tokens are in the cache after the first turn: eight whole blocks.
    assert served.cached_tokens.tolist() == [0, 128, 0]
    alone = simulate(turns((0.0, 300 - 128, 10, -1), (100.0, 300, 10, -1)), [replica])
    assert served.ttft_s[1:] == pytest.approx(alone.ttft_s)
    assert served.ttft_s[1] < served.ttft_s[2]


def test_the_last_token_of_a_prompt_is_always_computed(made_up: Make) -> None:
    replica = made_up(Batching(512, 4, 16), kv_tokens=4096)
    served = simulate(turns((0.0, 160, 33, 0), (100.0, 160, 5, 0), (200.0, 161, 5, 0)), [replica])
    assert served.cached_tokens.tolist() == [0, 144, 160]


def test_each_replica_keeps_its_own(made_up: Make) -> None:
    fleet = [made_up(kv_tokens=4096, seed=1)] * 2
    rows = [(20.0 * n, 100 + 60 * n, 20, 0) for n in range(5)]
    served = simulate(turns(*rows), fleet, Dispatch.ROUND_ROBIN)
    one = simulate(turns(*rows), fleet, Split(np.array([[1.0, 0.0]])))
    assert (served.cached_tokens[2:] < one.cached_tokens[2:]).all()
    assert served.cached_tokens[:2].tolist() == [0, 0]
    assert (served.cached_tokens[2:] > 0).all()


def test_the_prefix_used_longest_ago_goes_first_from_its_end(made_up: Make) -> None:
    replica = made_up(Batching(512, 4, 16), kv_tokens=64 * 16)
    first = [(0.0, 320, 1, 0), (50.0, 320, 1, 1)]  # twenty blocks each stay
    big = (100.0, 480, 1, -1)  # thirty: six more than are neither in use nor kept
    served = simulate(turns(*first, big, (150.0, 330, 1, 0), (200.0, 330, 1, 1)), [replica])
    assert served.cached_tokens.tolist() == [0, 0, 0, 14 * 16, 320]
    renewed = [*first, (60.0, 320, 1, 0)]  # then the other is the older
    served = simulate(turns(*renewed, big, (150.0, 330, 1, 0), (200.0, 330, 1, 1)), [replica])
    assert served.cached_tokens[4:].tolist() == [320, 14 * 16]


@pytest.mark.parametrize("chunked", [True, False])
def test_pieces_and_tight_caches_change_nothing_that_they_should_not(chunked: bool, made_up: Make) -> None:
    random, count = np.random.default_rng(3), 400
    arrivals = np.cumsum(random.exponential(0.3, count))
    traffic = Traffic(
        arrivals,
        random.integers(20, 300, count),
        random.integers(1, 40, count),
        np.zeros(count, np.int64),
        random.integers(-1, 25, count),
    )
    fleet = [made_up(Batching(64 if chunked else 512, 4, 8, chunked_prefill=chunked), kv_tokens=700, seed=1)] * 2
    whole = simulate(traffic, fleet, Dispatch.LEAST_OUTSTANDING)

    class Pieces:
        def __init__(self) -> None:
            self.simulation = Simulation(fleet, Dispatch.LEAST_OUTSTANDING)

        def offer(self, given: Traffic) -> np.ndarray[tuple[int], np.dtype[np.void]]:
            parts = [self.simulation.offer(given.part(n, n + 37)) for n in range(0, len(given), 37)]
            return np.concatenate(parts)

        def __getattr__(self, name: str) -> object:
            return getattr(self.simulation, name)

    parts = run(Pieces(), traffic)  # type: ignore[arg-type]
    assert parts.cached_tokens.tolist() == whole.cached_tokens.tolist()
    np.testing.assert_allclose(parts.e2e_s, whole.e2e_s, rtol=1e-9)
    served = ~np.isnan(whole.e2e_s)
    assert (whole.cached_tokens[served] > 0).any()
    assert (whole.cached_tokens < traffic.input_tokens).all()
    assert (whole.cached_tokens[traffic.sessions < 0] == 0).all()


def test_bad_sessions_are_refused() -> None:
    with pytest.raises(InputError, match="not -1"):
        turns((0.0, 1, 1, -2))
    with pytest.raises(InputError, match="sessions differ in number"):
        Traffic(np.zeros(2), np.ones(2, int), np.ones(2, int), sessions=np.zeros(1, int))
