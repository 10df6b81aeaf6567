"""Watching an event stream go by: is it one, how many tokens, and how it ends.

No sockets here. The bytes are passed on as they are; what is told from them is when the first event is whole (until
then nothing was sent to the client, and another replica can be asked), that every event is one, and the usage that the
engine reports.
"""

from __future__ import annotations

from typing import Any

import orjson

_LONGEST_EVENT = 2**22
_FIELDS = (b"data:", b":", b"event:", b"id:", b"retry:")
_ERRORS = (b'{"error"', b'{"object":"error"')
_USAGE = b'"completion_tokens"'


class StreamError(Exception):
    """What a replica streams is no answer; says why in a few words."""


class Events:
    """One stream of server-sent events of ``/v1/completions`` or ``/v1/chat/completions``.

    Attributes
    ----------
    count
        Whole events with data that were read, ``[DONE]`` not among them: tokens, near enough, where none are reported.
    done
        ``[DONE]`` was read.
    error
        What the engine said went wrong, in an event of its own; empty where it did not.
    prompt_tokens, completion_tokens
        From the engine's ``usage``; 0 until it came.
    broken
        Why what came last is no part of an event stream.
    """

    __slots__ = ("_rest", "broken", "completion_tokens", "count", "done", "error", "prompt_tokens")

    def __init__(self) -> None:
        self.count = self.prompt_tokens = self.completion_tokens = 0
        self.done = False
        self.error = ""
        self.broken: StreamError | None = None
        self._rest = b""

    @property
    def tokens(self) -> int:
        """Tokens that were generated: as reported, else one an event."""
        return self.completion_tokens or self.count

    @property
    def held(self) -> bytes:
        """What came of an event that is not whole yet."""
        return self._rest

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what is to be passed on: whole events, byte for byte as they came.

        A client can make nothing of half an event, and would stumble over it if the rest never came. After the first
        bytes that are no event nothing more is passed on, and `broken` says what they are.
        """
        if self.broken is not None:
            return b""
        if not self._rest and self._is_plain(data):
            self.count += 1
            if _USAGE in data:
                self._count(data[6:-2])
            return data
        unread = max(0, len(self._rest) - 3)  # before it no event ends
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n", unread) + 2
        crlf_end = data.rfind(b"\r\n\r\n", unread) + 4
        end = max(end, crlf_end) if crlf_end > 3 else end
        whole, self._rest = (data[:end], data[end:]) if end > 1 else (b"", data)
        text = whole.replace(b"\r\n", b"\n") if b"\r" in whole else whole
        good_bytes = 0
        try:
            for event in text.split(b"\n\n"):
                if event:
                    self._read(event)
                good_bytes += len(event) + 2
            if self._rest:
                self._check_rest()
        except StreamError as error:
            self.broken, self._rest = error, b""
            return whole[:good_bytes] if text is whole else b""
        return whole

    @staticmethod
    def _is_plain(data: bytes) -> bool:
        """Whether these bytes are one whole event with a document in one line, as nearly all that come are."""
        ends = data[-3:] == b"}\n\n" and data.find(b"\n") == len(data) - 2
        return ends and data[:7] == b"data: {" and not data.startswith(_ERRORS, 6)

    def _check_rest(self) -> None:
        if len(self._rest) > _LONGEST_EVENT:
            raise StreamError(f"no event in {_LONGEST_EVENT >> 20} MiB")
        start = self._rest.lstrip(b"\r\n")[:8]
        if not any(start.startswith(field) or field.startswith(start) for field in _FIELDS):
            raise StreamError("not an event stream")

    def _read(self, event: bytes) -> None:
        if event.startswith(b"data:") and b"\n" not in event:
            payload = event[5:].strip()
        else:
            lines = [line for line in event.split(b"\n") if line]
            if not all(line.startswith(_FIELDS) for line in lines):
                raise StreamError("not an event stream")
            payload = b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
        if not payload:
            return
        if payload == b"[DONE]":
            self.done = True
            return
        if payload[:1] != b"{" or payload[-1:] != b"}":
            raise StreamError("an event without JSON")
        self.count += 1
        if payload.startswith(_ERRORS):
            self.error = _error_text(payload)
        elif _USAGE in payload:
            self._count(payload)

    def _count(self, payload: bytes) -> None:
        usage = read_usage(payload)
        self.prompt_tokens = usage[0] or self.prompt_tokens
        self.completion_tokens = usage[1] or self.completion_tokens


def read_usage(payload: bytes) -> tuple[int, int]:
    """Return prompt and completion tokens that an answer or an event reports; 0 where it does not."""
    try:
        usage: Any = orjson.loads(payload)["usage"]
        found = usage["prompt_tokens"], usage["completion_tokens"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return 0, 0
    prompt, completion = (value if isinstance(value, int) and 0 <= value < 2**31 else 0 for value in found)
    return prompt, completion


def error_event(message: str, code: str) -> bytes:
    """Return the event that ends a stream which cannot go on, and what follows it."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\ndata: [DONE]\n\n"


def _error_text(payload: bytes) -> str:
    try:
        document: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise StreamError("an event without JSON") from None
    error = document.get("error")
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or "an error without a message").split())[:200]
