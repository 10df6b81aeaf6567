"""Records in columns, and as bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.core.errors import StoreError
from qplan.measure.load.encoding import decode_requests, encode_requests
from qplan.measure.load.requests import NOT_SAID, Outcome, Request, Requests

times = st.floats(0, 1e5)
gaps = st.lists(st.floats(0, 100), max_size=8)


@st.composite
def some_requests(draw: st.DrawFn) -> list[Request]:
    rows = []
    for index in draw(st.lists(st.integers(0, 10_000), unique=True, max_size=12)):
        scheduled = draw(times)
        sent = scheduled + draw(st.floats(0, 3))
        chunks = tuple(float(time) for time in sent + np.cumsum(draw(gaps)))
        end = (chunks[-1] if chunks else sent) + draw(st.floats(0, 3))
        tokens = draw(st.integers(NOT_SAID, 200_000))
        outcome = draw(st.sampled_from(Outcome if chunks else [*Outcome][1:]))
        reason = "" if outcome is Outcome.OK else draw(st.text(max_size=20))
        rows.append(Request(index, scheduled, sent, end, chunks, tokens, tokens, abs(tokens), outcome, reason))
    return rows


def same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, abs_tol=1e-9, rel_tol=1e-9)


@given(some_requests())
@settings(max_examples=60, deadline=None)
def test_columns_agree_with_rows_and_bytes_bring_them_back(rows: list[Request]) -> None:
    requests = Requests.of(rows, origin_s=12.5, cpu_s=0.25, processes=2)
    assert list(requests) == sorted(rows, key=lambda row: row.index)
    for place, row in enumerate(requests):
        for name in ("ttft_s", "e2e_s", "tpot_s", "itl_s", "first_token_s"):
            assert same(getattr(requests, name)[place], getattr(row, name)), name
    decoded = decode_requests(encode_requests(requests))
    for name in ("index", "offsets", "input_tokens", "output_tokens", "asked_tokens", "outcome"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(requests, name))
    for name in ("scheduled_s", "sent_s", "end_s", "chunk_s"):
        np.testing.assert_allclose(getattr(decoded, name), getattr(requests, name), atol=0.51e-6, rtol=0)
    assert (decoded.reason, decoded.origin_s, decoded.cpu_s, decoded.processes) == (requests.reason, 12.5, 0.25, 2)
    kept = requests.outcome == Outcome.OK
    assert list(requests.take(kept)) == [row for row in requests if row.outcome is Outcome.OK]
    parts = [requests.take(requests.index % 3 == share) for share in range(3)]
    assert list(Requests.merge(parts)) == list(requests)


def test_latencies_by_their_definitions() -> None:
    row = Request(0, 1.0, 1.5, 4.0, (2.0, 2.5, 3.5), 9, 4, 4, Outcome.OK, "")
    assert (row.ttft_s, row.e2e_s, row.tpot_s, row.itl_s) == (0.5, 2.0, 0.5, 1.0)
    requests = Requests.of([row])
    assert requests.ttft_scheduled_s.tolist() == [1.0]
    assert requests.lag_s.tolist() == [0.5]
    assert requests.gaps_s.tolist() == [0.5, 1.0]


def test_a_chunk_takes_a_few_bytes() -> None:
    random = np.random.default_rng(0)
    rows = []
    for index, start in enumerate(np.cumsum(random.exponential(0.1, 500))):
        chunks = start + 0.05 + np.cumsum(random.normal(0.01, 3e-4, 100))
        rows.append(Request(index, start, start + 1e-4, chunks[-1], tuple(chunks), 64, 100, 100, Outcome.OK, ""))
    assert len(encode_requests(Requests.of(rows))) < 2.5 * 500 * 100


@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_damage_is_a_clear_error(head: bytes, place: int, value: int) -> None:
    with pytest.raises(StoreError, match="record of requests"):
        decode_requests(head)
    row = Request(0, 1.0, 1.5, 4.0, (2.0, 2.5, 3.5), 9, 4, 4, Outcome.OK, "")
    data = bytearray(encode_requests(Requests.of([row] * 3)))
    cut = bytes(data[: place % len(data)])
    with pytest.raises(StoreError):
        decode_requests(cut)
