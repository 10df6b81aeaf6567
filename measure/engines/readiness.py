"""Whether a server really serves: it continues a pattern that no working model gets wrong.

An engine can be healthy and emit garbage: a KV-cache format without a correct kernel, weights of another layout.
Fluency and log-probabilities do not tell garbage from the output of a small model at two bits, which is confused and
sure of itself as well. Going on with a pattern does: it needs every part of the engine, above all the KV cache, and
even a 135M model at Q2_K with a 4-bit cache counts from 20 to 21. A server is sane when one of a few patterns is
continued.
"""

from __future__ import annotations

import time
from collections import Counter

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.blocking_http import fetch_json, shorten

PATTERNS = (
    ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,", "21 22"),
    (
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday, Wednesday, Thursday,",
        "Friday Saturday",
    ),
    (f"{' '.join('ABCDEFGHIJKLMNOPQRSTUVWXYZ')} {' '.join('ABCDEFGHIJKLMNOPQRSTUVW')}", "X Y"),
)
"""Prompts and the words that go on: two, because weights of a wrong layout still find the first."""

_CONTINUATION_TOKENS = 8
_CHAT_TOKENS = 64  # a chat model may say something first


def check_sanity(endpoint: Endpoint, *, timeout_s: float) -> None:
    """Ask for greedy continuations of :data:`PATTERNS` until one is right.

    Raises
    ------
    MeasurementError
        No answer, an error, or every answer is garbage; the message quotes it.
    """
    deadline = time.perf_counter() + timeout_s
    answers = []
    for prompt, expected in PATTERNS:
        text = complete(endpoint, prompt, max_tokens=_CONTINUATION_TOKENS, timeout_s=deadline - time.perf_counter())
        if continues(text, expected, anywhere=endpoint.api == "chat"):
            return
        answers.append(text)
    raise MeasurementError(
        f"its output is garbage: {describe(answers[0])}; asked to go on from '{PATTERNS[0][0][-11:]}'"
    )


def check_answers(endpoint: Endpoint, *, timeout_s: float) -> None:
    """Ask for a completion, of a model with random weights, whose answers make no sense.

    Raises
    ------
    MeasurementError
        No answer, an error, or an empty one.
    """
    if not complete(endpoint, PATTERNS[0][0], max_tokens=_CONTINUATION_TOKENS, timeout_s=timeout_s).strip():
        raise MeasurementError("its output is garbage: it is empty")


def continues(text: str, expected: str, *, anywhere: bool = False) -> bool:
    """Whether `text` starts with the words `expected`, or has them anywhere."""
    words = "".join(character if character.isalnum() else " " for character in text).split()
    length = len(expected.split())
    starts = range(len(words)) if anywhere else range(1)
    return any(words[start : start + length] == expected.split() for start in starts)


def describe(text: str) -> str:
    """Say in words what is wrong with a completion, and quote it."""
    if not text.strip():
        return "it is empty"
    quoted = f"'{shorten(text, 80)}'"
    if text.count("\N{REPLACEMENT CHARACTER}") > len(text) / 4:
        return f"it is not UTF-8, {quoted}"
    word, count = Counter(text.split()).most_common(1)[0]
    if count > 3 and count > len(text.split()) / 2:
        return f"it repeats '{shorten(word, 20)}'"
    if len(set(text.strip())) == 1:
        return f"it repeats '{text.strip()[0]}'"
    return f"it says {quoted}"


def complete(endpoint: Endpoint, prompt: str, *, max_tokens: int, timeout_s: float) -> str:
    """Return the greedy continuation of `prompt`; for a chat server, its reply when asked to continue `prompt`.

    Raises
    ------
    MeasurementError
        No answer, or one that carries no text.
    """
    if timeout_s <= 0:
        raise MeasurementError(f"{endpoint.route}: no time was left to ask for a completion")
    body: dict[str, object] = {"model": endpoint.model, "max_tokens": max_tokens, "temperature": 0, "stream": False}
    if endpoint.api == "chat":
        body |= {"messages": [{"role": "user", "content": f"Continue: {prompt}"}], "max_tokens": _CHAT_TOKENS}
    else:
        body["prompt"] = prompt
    answer = fetch_json(endpoint, endpoint.route.removeprefix(endpoint.url), timeout_s=timeout_s, body=body)
    try:
        choice = answer["choices"][0]
        said = choice["message"] if endpoint.api == "chat" else choice
        # a model that thinks first may have said nothing else yet
        text = said.get("content") or said.get("reasoning_content") or said.get("reasoning") or said.get("text")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise MeasurementError(f"{endpoint.route} answered no completion: {shorten(str(answer))}") from None
    if text is not None and not isinstance(text, str):
        raise MeasurementError(f"{endpoint.route} answered a completion without text: {shorten(str(answer))}")
    return text or ""
