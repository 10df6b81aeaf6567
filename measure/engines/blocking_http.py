"""One blocking HTTP request, for the few calls outside a load run: health, metrics, a first completion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """Body as text; bytes that are not UTF-8 become U+FFFD."""
        return self.body.decode(errors="replace")


def fetch(endpoint: Endpoint, path: str, *, timeout_s: float, body: object = None) -> Answer:
    """Get `path` of a server, or post `body` to it as JSON.

    Raises
    ------
    MeasurementError
        Nobody answered within `timeout_s` of silence, or what answered does not speak HTTP.
    """
    parts = urlsplit(endpoint.url)
    assert parts.hostname is not None
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname, parts.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        if body is None:
            connection.request("GET", parts.path + path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            connection.request("POST", parts.path + path, json.dumps(body), headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except TimeoutError:
        raise MeasurementError(f"{endpoint.url}{path} did not answer within {timeout_s:.3g} s") from None
    except (OSError, HTTPException) as error:
        if isinstance(error, BadStatusLine) and not isinstance(error, OSError):
            raise MeasurementError(f"{endpoint.url}{path} does not speak HTTP: {shorten(str(error))}") from None
        why = getattr(error, "strerror", None) or shorten(str(error)) or type(error).__name__
        raise MeasurementError(f"{endpoint.url}{path} cannot be reached: {why}") from None
    finally:
        connection.close()


def fetch_json(endpoint: Endpoint, path: str, *, timeout_s: float, body: object = None) -> Any:
    """Return the JSON that `path` answers with.

    Raises
    ------
    MeasurementError
        As :func:`fetch`; or the status is not 200, or the body is not JSON.
    """
    answer = fetch(endpoint, path, timeout_s=timeout_s, body=body)
    if answer.status != 200:
        raise MeasurementError(f"{endpoint.url}{path} answered {answer.status}: {shorten(answer.text)}")
    try:
        return json.loads(answer.body)
    except ValueError:
        raise MeasurementError(f"{endpoint.url}{path} answered no JSON: {shorten(answer.text)}") from None


def shorten(text: str, length: int = 200) -> str:
    """Return `text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
