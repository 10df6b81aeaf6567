"""What a client asks, read from the body of a request: enough to route it, nothing changed.

No sockets here. The body goes to the replica byte for byte; only the model's name is exchanged, where a replica serves
it under a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = (CHAT, COMPLETIONS)
_MOST_TOKENS = 2**31


class AskError(Exception):
    """The request cannot be routed.

    Parameters
    ----------
    status
        HTTP status to answer with.
    message
        What is wrong, for the client.
    code
        Machine-readable name, as OpenAI's API has them.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as far as routing has to know it.

    Attributes
    ----------
    path
        Route: one of :data:`PATHS`.
    body
        As the client sent it.
    model
        Name of the model; empty where the client gave none.
    stream
        Whether the answer is an event stream.
    prompt_bytes
        Size of the prompt's text in UTF-8; tokens are estimated from it.
    prompt_tokens
        Their number, where the prompt is of token ids; else 0.
    max_tokens
        Most tokens to generate of one answer; ``None`` where the client set no limit.
    session
        What requests of one conversation have in common, ``""`` where there is nothing: their cached prefix.
    """

    path: str
    body: bytes
    model: str
    stream: bool
    prompt_bytes: int
    prompt_tokens: int
    max_tokens: int | None
    session: str

    def for_model(self, name: str) -> bytes:
        """Return the body asking for the model by another name; other fields keep their order and values."""
        if name == self.model:
            return self.body
        quoted = orjson.dumps(self.model)
        for field in (b'"model":' + quoted, b'"model": ' + quoted):
            if self.model and self.body.count(field) == 1 and self.body.count(b'"model"') == 1:
                return self.body.replace(field, b'"model":' + orjson.dumps(name))
        return orjson.dumps({**orjson.loads(self.body), "model": name})


def read_ask(path: str, body: bytes, session: str = "") -> Ask:
    """Read a request; `session` is what the client said of it in a header.

    Raises
    ------
    AskError
        It is not one; with what is wrong.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise AskError(400, f"the body is not JSON: {str(error)[:120]}", "invalid_json") from None
    if not isinstance(document, dict):
        raise AskError(400, "the body is not a JSON object", "invalid_json")
    model, stream = document.get("model", ""), document.get("stream")
    if not isinstance(model, str):
        raise AskError(400, "'model' is not a text", "invalid_model")
    if stream is not None and not isinstance(stream, bool):
        raise AskError(400, "'stream' is neither true nor false", "invalid_stream")
    if path == CHAT:
        messages = document.get("messages")
        if not isinstance(messages, list) or not messages:
            raise AskError(400, "'messages' is not a list of messages", "invalid_messages")
        prompt_bytes, prompt_tokens, opening = _size_of_chat(messages), 0, messages[:2]
    else:
        prompt = document.get("prompt")
        if prompt is None:
            raise AskError(400, "'prompt' is missing", "invalid_prompt")
        prompt_bytes, prompt_tokens = _size_of_prompt(prompt)
        opening = None
    named = session or document.get("prompt_cache_key") or ""
    return Ask(
        path,
        body,
        model,
        bool(stream),
        prompt_bytes,
        prompt_tokens,
        _limit(document),
        named if isinstance(named, str) and named else _opening(opening),
    )


def _limit(document: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = document.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST_TOKENS:
            return value
    return None


def _size_of_chat(messages: list[Any]) -> int:
    """Count the bytes of the text of all messages."""
    size = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            size += _bytes(content)
        elif isinstance(content, list):
            size += sum(_bytes(part.get("text")) for part in content if isinstance(part, dict))
    return size


def _size_of_prompt(prompt: object) -> tuple[int, int]:
    """Return bytes and token ids of a prompt: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return _bytes(prompt), 0
    size = tokens = 0
    for item in prompt if isinstance(prompt, list) else ():
        if isinstance(item, str):
            size += _bytes(item)
        elif isinstance(item, list):
            tokens += len(item)
        else:
            tokens += 1
    return size, tokens


def _bytes(text: object) -> int:
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _opening(messages: list[Any] | None) -> str:
    """Name a conversation by how it began: later turns send the first messages again."""
    if not messages:
        return ""
    first = messages[0]
    begins_with_system = isinstance(first, dict) and first.get("role") in ("system", "developer")
    return f"{hash(orjson.dumps(messages if begins_with_system else messages[:1])):x}"
