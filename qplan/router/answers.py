"""Answers that the router gives itself."""

from __future__ import annotations

import orjson
from aiohttp import web

from qplan.router.asking import AskError


def json_answer(document: object, status: int = 200) -> web.Response:
    """Return a document."""
    return web.Response(status=status, body=orjson.dumps(document), headers={"Content-Type": "application/json"})


def refusal(error: AskError, retry_after_s: int | None = None) -> web.Response:
    """Return the answer that says why there is none, as OpenAI's API words it."""
    kind = "invalid_request_error" if error.status < 429 else "server_error"
    kind = "rate_limit_error" if error.status == 429 else kind
    document = {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}
    fields = {"Content-Type": "application/json"}
    if retry_after_s is not None:
        fields["Retry-After"] = str(retry_after_s)
    if error.status == 401:
        fields["WWW-Authenticate"] = "Bearer"
    return web.Response(status=error.status, headers=fields, body=orjson.dumps(document))
