"""A server that somebody else runs: reached by its address, never started or stopped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from qplan.core.errors import InputError, MeasurementError, nearest
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.blocking_http import fetch, fetch_json
from qplan.measure.engines.contract import EngineError, EngineState, Prepared, Serving
from qplan.measure.engines.metrics_text import read_state
from qplan.measure.engines.readiness import complete

_SETTINGS = ("api", "api_key_env")
_KEY_VARIABLE = "OPENAI_API_KEY"
_TIMEOUT_S = 30.0
_POLL_S = 1.0


class Remote:
    """Adapter of a server that runs already.

    The weights of a :class:`~qplan.measure.engines.contract.Serving` are its address, and the quantization is what its
    owner says. ``{"api": "chat"}`` in the settings uses the chat route, and ``{"api_key_env": "NAME"}`` takes the API
    key from that environment variable instead of ``OPENAI_API_KEY``. Its output must be text but need not make sense:
    whoever runs a server with made-up weights knows it.
    """

    name = "remote"

    def version(self) -> str:
        """Return ``unknown``: servers do not agree on how to say it; a running server may know better."""
        return "unknown"

    def refusal(self, serving: Serving) -> str | None:
        """Say why the address or the settings cannot be used, or return ``None``."""
        for name, value in serving.settings.items():
            if name not in _SETTINGS:
                return (
                    f"remote has no setting '{name}'{nearest(name, _SETTINGS)}; whoever runs the server has set it up"
                )
            if name == "api" and value not in ("completions", "chat"):
                return f"remote: api is '{value}'; expected completions or chat"
            if name == "api_key_env" and str(value) not in os.environ:
                return f"remote: api_key_env is '{value}', an environment variable that is not set"
        try:
            Endpoint.parse(serving.weights, serving.model, where="weights")
        except InputError as error:
            return str(error)
        return None

    def prepare(self, serving: Serving, cache: Path) -> Prepared:  # noqa: ARG002 - the contract's signature
        """Return the address: there is nothing to prepare."""
        return Prepared(serving.weights, None, "served by somebody else")

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> RemoteServer:  # noqa: ARG002
        """Return once the server answers a completion of the model asked for.

        Raises
        ------
        EngineError
            It does not answer before the deadline, or does not know the model; the message names those that it knows.
        """
        deadline = time.perf_counter() + deadline_s
        api = str(serving.settings.get("api", "completions"))
        key = os.environ.get(str(serving.settings.get("api_key_env", _KEY_VARIABLE)))
        endpoint = Endpoint.parse(prepared.weights, serving.model, api, key, where="weights")
        while True:
            try:
                models = _models(endpoint, min(_TIMEOUT_S, deadline_s))
                break
            except MeasurementError as error:
                if time.perf_counter() + _POLL_S > deadline:
                    raise EngineError(f"not ready after {deadline_s:.3g} s: {error}") from None
            time.sleep(_POLL_S)
        if models and serving.model not in models:
            near = nearest(serving.model, models)
            raise EngineError(f"{endpoint.url} serves {', '.join(models)}, not '{serving.model}'{near}")
        try:
            text = complete(endpoint, "One, two, three,", max_tokens=8, timeout_s=deadline - time.perf_counter())
        except MeasurementError as error:
            raise EngineError(str(error)) from None
        if not text:
            raise EngineError(f"{endpoint.route} answered an empty completion")
        return RemoteServer(endpoint, _version(endpoint))


class RemoteServer:
    """A :class:`~qplan.measure.engines.contract.Server` that somebody else runs."""

    command: tuple[str, ...] = ()
    pid: int | None = None

    def __init__(self, endpoint: Endpoint, version: str) -> None:
        self.endpoint = endpoint
        self.version = version

    def check(self) -> None:
        """Raise if the server does not list its models any more."""
        try:
            _models(self.endpoint, _TIMEOUT_S)
        except MeasurementError as error:
            raise EngineError(str(error)) from None

    def state(self) -> EngineState:
        """Read `/metrics`, if the server lets us."""
        try:
            answer = fetch(self.endpoint, "/metrics", timeout_s=_TIMEOUT_S)
        except MeasurementError:
            return EngineState()
        return read_state(answer.text) if answer.status == 200 else EngineState()

    def cpu_s(self) -> float | None:
        """Return ``None``: another machine's CPU is not seen."""
        return None

    def last_lines(self, count: int = 20) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: another machine's log is not seen."""
        return ()

    def stop(self) -> None:
        """Leave the server running."""

    def __enter__(self) -> RemoteServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _models(endpoint: Endpoint, timeout_s: float) -> list[str]:
    """Return the names that the server knows its models by."""
    listed = fetch_json(endpoint, "/v1/models", timeout_s=timeout_s)
    try:
        return [str(model["id"]) for model in listed["data"]]
    except (KeyError, TypeError):
        raise MeasurementError(f"{endpoint.url}/v1/models answered no list of models") from None


def _version(endpoint: Endpoint) -> str:
    """Return what vLLM's route `/version` says, or ``unknown``."""
    try:
        return str(fetch_json(endpoint, "/version", timeout_s=_TIMEOUT_S)["version"])
    except (MeasurementError, KeyError, TypeError):
        return "unknown"
