"""A span for each request, for OpenTelemetry, where its SDK is installed and the environment says where spans go.

Read are the variables of opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables: an endpoint
(``OTEL_EXPORTER_OTLP_ENDPOINT`` or its like for traces) or an exporter (``OTEL_TRACES_EXPORTER``) turns it on. A trace
that a client has begun goes on here and at the replica (``traceparent``, w3.org/TR/trace-context).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from qplan.router.logs import Log

if TYPE_CHECKING:
    from qplan.router.proxy import Record

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_MISSING = "OTEL_* is set, but {} is missing: pip install 'qplan[otel]'"


class Tracing:
    """Makes the spans of one process.

    Parameters
    ----------
    provider
        A ``TracerProvider`` of OpenTelemetry's SDK.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._tracer = provider, provider.get_tracer("qplan.router")
        self._propagator, self._in_context = TraceContextTextMapPropagator(), set_span_in_context
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)

    def begin(self, path: str, fields: Mapping[str, str]) -> tuple[Any, bytes]:
        """Begin the span of a request; return it, and the header fields that carry it to the replica."""
        given = {name: fields[name] for name in ("traceparent", "tracestate") if name in fields}
        span = self._tracer.start_span(f"POST {path}", self._propagator.extract(given), self._kind)
        carried: dict[str, str] = {}
        self._propagator.inject(carried, self._in_context(span))
        return span, "".join(f"{name}: {value}\r\n" for name, value in carried.items()).encode("latin-1", "replace")

    def end(self, span: Any, record: Record) -> None:
        """End the span of a request with what came of it."""
        about: dict[str, Any] = {
            "http.request.method": "POST",
            "http.response.status_code": record.status,
            "qplan.class": record.request_class,
            "qplan.replica": record.replica,
            "qplan.attempts": record.attempts,
            "qplan.outcome": record.outcome,
        }
        if record.reason:
            about["qplan.reason"] = record.reason
        flight = record.flight
        if flight is not None:
            choice, events = flight.choice, flight.events
            about["gen_ai.request.model"] = flight.ask.model
            about["qplan.predicted_ttft_s"], about["qplan.predicted_tpot_s"] = choice.ttft_s, choice.tpot_s
            about["qplan.predicted_energy_j"] = choice.energy_j
            if events.tokens:
                about["gen_ai.usage.output_tokens"] = events.tokens
            if flight.ask.stream and flight.first_s:
                about["qplan.ttft_s"] = flight.first_s - flight.sent_s
                if events.tokens > 1:
                    about["qplan.tpot_s"] = (flight.last_s - flight.first_s) / (events.tokens - 1)
        span.set_attributes(about)
        if record.outcome in ("broken", "failed", "unavailable"):
            span.set_status(self._failed)
        span.end()

    def close(self) -> None:
        """Send what is left; waits for the exporter."""
        self._provider.shutdown()


def tracing(log: Log, number: int) -> Tracing | None:
    """Return what makes the spans of process `number`, or ``None`` where nobody asked for any, or it cannot be had."""
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if os.environ.get("OTEL_SDK_DISABLED", "").casefold() == "true" or wanted == "none":
        return None
    if not wanted and not any(map(os.environ.get, _ENDPOINTS)):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.write("tracing", reason=_MISSING.format(error.name))
        return None
    about = {"service.instance.id": str(number)}
    if "OTEL_SERVICE_NAME" not in os.environ:
        about["service.name"] = "qplan-router"
    provider = TracerProvider(resource=Resource.create(about))
    for name in (wanted or "otlp").split(","):
        kind = "otlp_proto_http" if name.strip() == "otlp" else name.strip()
        found = list(entry_points(group="opentelemetry_traces_exporter", name=kind))
        if not found:
            log.write("tracing", reason=_MISSING.format(f"the exporter {kind}"))
            provider.shutdown()
            return None
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    return Tracing(provider)
