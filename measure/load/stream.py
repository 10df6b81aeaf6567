"""Reading a streamed answer: server-sent events, whatever way they are cut, and what the answer amounts to.

No sockets here: bytes and the time they arrived at go in, chunk times, token counts and an outcome come out.
"""

from __future__ import annotations

from typing import Any

import orjson

from qplan.measure.load.requests import NOT_SAID, Outcome

_LONGEST_EVENT = 2**22
_KEPT = 2000
_BROKEN_OFF = frozenset({"abort", "error", "cancelled", "content_filter"})


class AnswerError(Exception):
    """The answer cannot be read on; says why in a few words."""


class Answer:
    """One streamed answer of ``/v1/completions`` or ``/v1/chat/completions``.

    Attributes
    ----------
    chunk_s
        Arrival of each event that carried content.
    input_tokens, output_tokens
        From the server's ``usage``; :data:`~qplan.measure.load.requests.NOT_SAID` until it came.
    done
        ``[DONE]`` was read: nothing more comes.
    """

    __slots__ = ("_events", "_finish", "_head", "_rest", "chunk_s", "done", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.chunk_s: list[float] = []
        self.input_tokens = self.output_tokens = NOT_SAID
        self.done = False
        self._finish = ""
        self._rest = b""
        self._head = b""
        self._events = 0

    def feed(self, data: bytes, now_s: float) -> None:
        """Take the next bytes, which arrived at `now_s`.

        Raises
        ------
        AnswerError
            They hold an error of the server, or what is not an answer.
        """
        if self._rest:
            data = self._rest + data
        if not self._events and len(self._head) < _KEPT:
            self._head = data[:_KEPT]
        if b"\r" in data:
            # A last \r may be the first half of \r\n: it stays for the next bytes.
            held = data.endswith(b"\r")
            data = data[: len(data) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r" * held
        whole, _, self._rest = data.rpartition(b"\n\n")
        if len(self._rest) > _LONGEST_EVENT:
            raise AnswerError(f"no event in {_LONGEST_EVENT >> 20} MiB")
        if whole:
            for event in whole.split(b"\n\n"):
                self._read(event, now_s)

    def close(self, asked_tokens: int) -> tuple[Outcome, str]:
        """Take the end of the stream; say what the answer amounts to, and why where it is not ``OK``."""
        if not self.done and self._rest:
            try:
                self._read(self._rest.strip(), self.chunk_s[-1] if self.chunk_s else 0.0)  # no blank line at the end
            except AnswerError as error:
                return (Outcome.TRUNCATED, "ended inside an event") if self.chunk_s else (Outcome.FAILED, str(error))
        if not self._events:
            return Outcome.FAILED, self._not_a_stream()
        if self._finish in _BROKEN_OFF:
            return Outcome.TRUNCATED, f"finish_reason {self._finish}"
        told = self.output_tokens != NOT_SAID
        if self._finish != "stop" and told and self.output_tokens < asked_tokens:
            why = f" (finish_reason {self._finish})" if self._finish else ", no finish_reason"
            return Outcome.TRUNCATED, f"{self.output_tokens} of {asked_tokens} tokens{why}"
        if not self._finish and not told:
            return Outcome.TRUNCATED, "ended without finish_reason"
        if not self.chunk_s:
            return Outcome.EMPTY, "no text"
        return Outcome.OK, ""

    def broken_off(self, cause: str) -> tuple[Outcome, str]:
        """Say what the answer amounts to when its connection broke."""
        return Outcome.TRUNCATED, f"{cause}, after {len(self.chunk_s)} chunks"

    def _read(self, event: bytes, now_s: float) -> None:
        if event.startswith(b"data:") and b"\n" not in event:
            payload = event[5:].strip()
        else:
            lines = event.split(b"\n")
            if any(line.startswith(b"error:") for line in lines):  # llama.cpp's older form
                raise AnswerError(one_line(event))
            payload = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")).strip()
        if not payload:
            return
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            document = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise AnswerError(f"not JSON: {one_line(payload)}") from None
        self._events += 1
        try:
            self._take(document, now_s)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
            raise AnswerError(f"not a completion: {one_line(payload)}") from None

    def _take(self, document: dict[str, Any], now_s: float) -> None:
        if document.get("error"):
            raise AnswerError(error_text(document))
        usage = document.get("usage")
        if usage:
            self.input_tokens, self.output_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        choices = document["choices"]
        if not choices:
            return
        choice = choices[0]
        text = choice.get("text")
        if text is None:
            delta = choice.get("delta") or {}
            text = (
                delta.get("content")
                or delta.get("reasoning_content")
                or delta.get("reasoning")
                or delta.get("tool_calls")
            )
        if text:
            self.chunk_s.append(now_s)
        finish = choice.get("finish_reason")
        if finish:
            self._finish = str(finish)

    def _not_a_stream(self) -> str:
        body = self._head.strip()
        if not body:
            return "200 without a body"
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return f"200 with what is not an event stream: {one_line(body)}"
        if isinstance(document, dict) and "choices" in document:
            return "answered at once; the server does not stream"
        return f"200 with an error: {error_text(document)}"


def error_text(document: object) -> str:
    """Return the message of an OpenAI-like error document, in one line."""
    found = document
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return one_line(found if isinstance(found, str) else orjson.dumps(found))


def one_line(text: str | bytes, longest: int = 160) -> str:
    """Return `text` as one printable line."""
    words = text if isinstance(text, str) else text[: 4 * longest].decode("utf-8", "replace")
    line = "".join(sign if sign.isprintable() else " " for sign in words)
    line = " ".join(line.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
