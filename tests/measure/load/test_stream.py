"""Server-sent events, however they are cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.measure.load.requests import NOT_SAID, Outcome
from qplan.measure.load.stream import Answer, AnswerError, one_line


def event(text: str | None, finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish}]}, ensure_ascii=False).encode()


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}'
WHOLE = [event("a"), event("日本"), event("\U0001f600"), event("", "length"), USAGE, b"data: [DONE]"]


@given(
    cuts=st.lists(st.integers(0, 1000)),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    noise=st.sampled_from([b"", b": a comment", b"id: 3", b"event: message", b"retry: 10"]),
    closed=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_cuts_line_ends_and_comments_change_nothing(cuts: list[int], end: bytes, noise: bytes, closed: bool) -> None:
    blank = end * 2
    stream = blank.join(noise + end + part if noise else part for part in WHOLE) + (blank if closed else b"")
    edges = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    answer = Answer()
    for number, (start, stop) in enumerate(pairwise(edges)):
        answer.feed(stream[start:stop], float(number))
    assert answer.close(3) == (Outcome.OK, "")
    assert len(answer.chunk_s) == 3
    assert answer.chunk_s == sorted(answer.chunk_s)
    assert (answer.input_tokens, answer.output_tokens) == (7, 3)


def test_no_space_and_several_lines_of_data() -> None:
    answer = Answer()
    answer.feed(b'data:{"choices":[{"text":"a",\ndata: "finish_reason":"stop"}]}\n\ndata:[DONE]\n\n', 1.0)
    assert answer.done
    assert answer.chunk_s == [1.0]


@pytest.mark.parametrize(
    ("delta", "chunks"),
    [
        ({"content": "a"}, 1),
        ({"role": "assistant", "content": ""}, 0),
        ({"content": None}, 0),
        ({"reasoning_content": "hm"}, 1),
        ({"reasoning": "hm"}, 1),
        ({"tool_calls": [{"index": 0}]}, 1),
        ({}, 0),
        (None, 0),
    ],
)
def test_only_content_counts_as_a_chunk(delta: object, chunks: int) -> None:
    answer = Answer()
    answer.feed(b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n", 1.0)
    assert len(answer.chunk_s) == chunks


@pytest.mark.parametrize(
    ("parts", "asked", "expected"),
    [
        ([event("a"), event("", "stop"), USAGE], 10, Outcome.OK),  # it wanted to stop
        ([event("a"), event("", "length"), USAGE], 3, Outcome.OK),
        ([event("a"), event("", "length"), USAGE], 10, Outcome.TRUNCATED),  # the context ran out
        ([event("a"), event("", "abort"), USAGE], 3, Outcome.TRUNCATED),
        ([event("a")], 3, Outcome.TRUNCATED),
        ([event("a"), b"data: [DONE]"], 3, Outcome.TRUNCATED),
        ([event("a"), USAGE], 3, Outcome.OK),  # no reason, but all tokens
        ([event(""), event("", "stop")], 3, Outcome.EMPTY),
        ([], 3, Outcome.FAILED),
        ([b"<html>busy</html>"], 3, Outcome.FAILED),
        ([b'{"choices": [{"text": "all at once"}]}'], 3, Outcome.FAILED),
    ],
)
def test_what_an_answer_amounts_to(parts: list[bytes], asked: int, expected: Outcome) -> None:
    answer = Answer()
    for part in parts:
        answer.feed(part + b"\n\n", 1.0)
    outcome, reason = answer.close(asked)
    assert outcome is expected
    assert bool(reason) == (expected is not Outcome.OK)


@pytest.mark.parametrize(
    "data",
    [
        b"data: {not json}\n\n",
        b"data: \xff\xfe\n\n",
        b"data: 3\n\n",
        b"data: []\n\n",
        b'data: {"choices": 3}\n\n',
        b'data: {"choices": [3]}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": "x", "completion_tokens": 1}}\n\n',
        b'data: {"usage": {}}\n\n',
        b'data: {"error": "overloaded"}\n\n',
        b'error: {"message": "overloaded"}\n\n',
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(AnswerError) as caught:
        Answer().feed(data, 1.0)
    assert str(caught.value)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_are_a_traceback(data: bytes) -> None:
    answer = Answer()
    try:
        answer.feed(data, 1.0)
    except AnswerError:
        return
    outcome, reason = answer.close(3)
    assert outcome is not Outcome.OK
    assert reason
    assert answer.output_tokens == NOT_SAID


def test_an_endless_event_is_not_kept() -> None:
    answer = Answer()
    answer.feed(b"x" * 3_000_000, 1.0)
    with pytest.raises(AnswerError, match="no event"):
        answer.feed(b"x" * 3_000_000, 1.0)


def test_reasons_are_short_and_printable() -> None:
    assert one_line("a\n\tb\x00c") == "a b c"
    assert len(one_line("x" * 1000)) == 160
