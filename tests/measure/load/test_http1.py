"""HTTP/1.1 replies, however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qplan.measure.load.http1 import HttpError, Reply

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n8;name=x\r\n, \r\nworl\r\n1\r\nd\r\n0\r\n\r\n"
)
TRAILER = CHUNKED[:-2] + b"X-Time: 3\r\nX-More: 4\r\n\r\n"
SIZED = b"HTTP/1.1 503 Busy\r\nCONTENT-LENGTH: 14\r\n\r\nhello, \r\nworld"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED
BODY = b"hello, \r\nworld"


@given(reply=st.sampled_from([CHUNKED, TRAILER, SIZED, CONTINUED]), cuts=st.lists(st.integers(0, 200)))
@settings(max_examples=200, deadline=None)
def test_cuts_change_nothing(reply: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(reply), *(cut % len(reply) for cut in cuts)})
    parser, body = Reply(), b""
    for start, stop in pairwise(edges):
        assert not parser.complete
        body += parser.feed(reply[start:stop])
    assert body == BODY
    assert parser.complete
    assert parser.keep
    assert parser.status == (503 if reply is SIZED else 200)


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
    ],
)
def test_whether_the_connection_is_kept(head: bytes, keep: bool) -> None:
    parser = Reply()
    assert parser.feed(head + b"\r\n\r\n") == b""
    assert parser.complete
    assert parser.keep is keep


def test_a_body_without_length_ends_with_the_connection() -> None:
    parser = Reply()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nhel") + parser.feed(b"lo") == b"hello"
    before = parser.complete
    parser.end()
    assert (before, parser.complete, parser.keep) == (False, True, False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\n", "without an answer"),
        (CHUNKED[:-5], "mid-answer"),
        (SIZED[:-1], "mid-answer"),
    ],
)
def test_an_early_end_is_an_error(data: bytes, words: str) -> None:
    parser = Reply()
    parser.feed(data)
    with pytest.raises(HttpError, match=words):
        parser.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 what\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(HttpError):
        Reply().feed(data)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_are_a_traceback(data: bytes) -> None:
    parser = Reply()
    try:
        parser.feed(data)
        parser.end()
    except HttpError as error:
        assert str(error)
