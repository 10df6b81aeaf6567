"""Watching an event stream go by."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qplan.router.events import Events, error_event, read_usage

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = b": hello\n\n" + TOKEN * 3 + USAGE + DONE


def feed(pieces: list[bytes]) -> tuple[Events, bytes]:
    events = Events()
    return events, b"".join(events.feed(piece) for piece in pieces)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % len(data) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize("crlf", [False, True])
@quick
@given(places=st.lists(st.integers(0, 1000), max_size=8))
def test_a_stream_is_passed_on_unchanged_however_it_is_cut(crlf: bool, places: list[int]) -> None:
    data = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    events, passed = feed(cut(data, places))
    assert passed + events.held == data
    assert (events.count, events.done, events.tokens, events.prompt_tokens) == (4, True, 5, 9)
    assert events.broken is None


@quick
@given(st.lists(st.integers(0, 1000), max_size=8), st.integers(0, len(STREAM)))
def test_only_whole_events_are_passed_on(places: list[int], end: int) -> None:
    _, passed = feed(cut(STREAM[:end] or b":", places))
    assert passed == b"" or passed.endswith(b"\n\n")


@quick
@given(st.lists(st.sampled_from([TOKEN, USAGE, DONE, b": x\n\n", b'data: {"error": "e"}\n\n', b'data:{"a": 1}\n\n'])))
def test_events_that_come_one_by_one_are_read_as_those_that_come_together(stream: list[bytes]) -> None:
    one_by_one, together = feed(stream)[0], feed([b"".join(stream)])[0]
    for name in ("count", "done", "error", "prompt_tokens", "completion_tokens"):
        assert getattr(one_by_one, name) == getattr(together, name), name


def test_events_are_counted_where_no_usage_is_said() -> None:
    assert feed([TOKEN * 3 + DONE])[0].tokens == 3


@pytest.mark.parametrize(
    "bad",
    [b"\x00\x01\xff\n\n", b"<html>\n\n", b"data: not json\n\n", b'data: {"half\n\n', b"HTTP/1.1 500\r\n", b"{}\n\n"],
)
def test_what_is_no_event_ends_the_stream_and_is_not_passed_on(bad: bytes) -> None:
    events, passed = feed([TOKEN + bad])
    assert passed == TOKEN
    assert events.broken is not None
    assert feed([bad])[0].broken is not None


def test_several_lines_and_other_fields_are_events() -> None:
    events, _ = feed([b'event: x\nid: 1\nretry: 5\ndata: {"a":\ndata: 1}\n\n'])
    assert (events.count, events.broken) == (1, None)


def test_an_error_in_the_stream() -> None:
    events, passed = feed([TOKEN, b'data: {"error": {"message": "out of\\n memory"}}\n\n'])
    assert events.error == "out of memory"
    assert passed.endswith(b"}}\n\n")


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    events = Events()
    for _ in range(70):
        events.feed(b"data: " + b"x" * 2**16)
    assert events.broken is not None
    assert not events.held


@quick
@given(st.binary(max_size=300))
def test_whatever_bytes_come(data: bytes) -> None:
    events, passed = feed([data])
    assert data.startswith(passed)
    assert events.broken is not None or passed + events.held == data


def test_the_error_event_is_one() -> None:
    events, _ = feed([error_event('a "quoted"\nreason', "stream_broken")])
    assert events.error == 'a "quoted" reason'
    assert events.done


@pytest.mark.parametrize("usage", ["null", "3", '{"prompt_tokens": -1, "completion_tokens": "x"}', "{}"])
def test_usage_that_is_none(usage: str) -> None:
    assert read_usage(b'{"usage": %b}' % usage.encode()) == (0, 0)
    assert read_usage(json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()) == (3, 4)
