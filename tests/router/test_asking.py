"""What is read from the body of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qplan.router.asking import CHAT, COMPLETIONS, PATHS, Ask, AskError, read_ask

MESSAGES = [[{"content": "x"}], [{"role": 3, "content": [{"text": 3}, {"text": "x"}, 4]}], [{"role": "system"}, {}]]
VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2**63,
        1.5,
        "",
        "m",
        "\x00",
        [],
        [[]],
        [1, "a", None],
        [[1], ["x"]],
        {},
        {"a": 1},
        [{}],
        *MESSAGES,
    ]
)
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("model", "messages", "prompt", "stream", "max_tokens", "max_completion_tokens", "prompt_cache_key")


def read(path: str = CHAT, **fields: Any) -> Ask:
    return read_ask(path, json.dumps(fields).encode())


def said(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


def test_a_chat() -> None:
    ask = read(model="m", messages=[said("user", "héllo"), said("assistant", None)], stream=True, max_tokens=7)
    assert (ask.model, ask.stream, ask.max_tokens, ask.prompt_bytes, ask.prompt_tokens) == ("m", True, 7, 6, 0)


def test_parts_of_a_message_count() -> None:
    parts = [{"type": "text", "text": "abcd"}, {"type": "image_url", "image_url": {"url": "x" * 1000}}]
    assert read(messages=[said("user", parts)]).prompt_bytes == 4


@pytest.mark.parametrize(
    ("prompt", "found"),
    [("abcd", (4, 0)), (["ab", "c"], (3, 0)), ([1, 2, 3], (0, 3)), ([[1, 2], [3]], (0, 3)), (7, (0, 0))],
)
def test_prompts(prompt: Any, found: tuple[int, int]) -> None:
    ask = read(COMPLETIONS, prompt=prompt)
    assert (ask.prompt_bytes, ask.prompt_tokens) == found


def test_the_newer_name_of_the_limit_wins_and_nonsense_is_left_to_the_replica() -> None:
    messages = [said("user", "x")]
    assert read(messages=messages, max_tokens=7, max_completion_tokens=5).max_tokens == 5
    for value in (0, -1, True, "7", 2**40, None):
        assert read(messages=messages, max_tokens=value).max_tokens is None


def test_turns_of_a_conversation_have_a_session_in_common() -> None:
    system, first = said("system", "be brief"), said("user", "hello")
    later = [first, said("assistant", "hi"), said("user", "and now?")]
    assert read(messages=[first]).session == read(messages=later).session
    assert read(messages=[system, first]).session == read(messages=[system, *later]).session
    assert read(messages=[system, first]).session != read(messages=[system, said("user", "other")]).session
    assert read(messages=[first], prompt_cache_key="mine").session == "mine"
    assert read_ask(CHAT, json.dumps({"messages": [first]}).encode(), "header").session == "header"


@pytest.mark.parametrize("text", ['{"model":"m","a":[1, 2.0],"x":"m"}', '{ "x": 1e-7, "model": "m" }'])
def test_another_name_of_the_model_changes_nothing_else(text: str) -> None:
    body = text.replace("}", ', "messages": [{"content": "model"}]}').encode()
    ask = read_ask(CHAT, body)
    renamed = ask.for_model("inner")
    assert json.loads(renamed) == {**json.loads(body), "model": "inner"}
    assert renamed.replace(b'"inner"', b'"m"').replace(b" ", b"") == body.replace(b" ", b"")
    assert ask.for_model("m") is body


def test_a_name_that_is_also_elsewhere_is_not_mistaken() -> None:
    body = b'{"messages": [{"content": "x", "model":"m"}], "model":"m"}'
    renamed = json.loads(read_ask(CHAT, body).for_model("inner"))
    assert renamed == {"messages": [{"content": "x", "model": "m"}], "model": "inner"}


@quick
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_whatever_the_fields_are(path: str, fields: dict[str, Any]) -> None:
    try:
        ask = read(path, **fields)
    except AskError as error:
        assert error.status == 400
        assert error.message
        return
    assert ask.prompt_bytes >= 0
    assert ask.max_tokens is None or ask.max_tokens > 0
    assert isinstance(ask.session, str)
    assert json.loads(ask.for_model("other"))["model"] == "other"


@quick
@given(st.sampled_from(PATHS), st.binary(max_size=100))
def test_whatever_the_bytes_are(path: str, body: bytes) -> None:
    try:
        read_ask(path, body)
    except AskError as error:
        assert error.code
