"""Spans of requests, by OpenTelemetry's own SDK: into memory, and over HTTP from the real process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qplan.router.logs import Log
from qplan.router.proxy import Record
from qplan.router.tracing import Tracing, tracing
from tests.router.live import Replica, ask, fleet, wait_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


def test_nobody_asked_for_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    assert tracing(log, 0) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert tracing(log, 0) is None
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing(log, 0) is None
    log.close()


def test_an_exporter_that_is_missing_is_said_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
    log = Log()
    assert tracing(log, 0) is None
    log.close()
    assert b"pip install 'qplan[otel]'" in capfdbinary.readouterr().err


def test_a_span_goes_on_with_the_clients_trace() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    one = Tracing(provider)
    span, fields = one.begin("/v1/completions", GIVEN)
    one.end(span, Record(0.0, outcome="failed", status=502, request_class="chat", attempts=3, reason="r: gone"))
    one.end(one.begin("/v1/completions", {"traceparent": "00-nonsense"})[0], Record(0.0, outcome="ok", status=200))
    first, second = memory.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == PARENT
    assert fields.decode() == f"traceparent: 00-{TRACE}-{first.context.span_id:016x}-01\r\ntracestate: vendor=1\r\n"
    assert (first.attributes["qplan.attempts"], first.attributes["qplan.reason"]) == (3, "r: gone")
    assert not first.status.is_ok
    assert second.parent is None
    assert second.status.is_ok
    one.close()


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector of OTLP over HTTP; its address, and the spans that came."""
    service = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs qplan[otel]"
    )
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = service.ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            spans.extend(span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_real_process_sends_a_span_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        replica = Replica("a", itl_s=0.002)
        with fleet(tmp_path, [replica]) as router:
            assert ask(router.url, GIVEN, stream=True)[0] == 200
            assert ask(router.url)[0] == 200
            assert ask(router.url, {"x-qplan-class": "no such"})[0] == 400
            wait_for(lambda: len(spans) == 3, 10)
            head = replica.seen()["head"].lower()
            assert not router.events("bug")
    streamed, whole, refused = (
        {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes} for span in spans
    )
    assert spans[0].trace_id.hex() == TRACE
    assert spans[0].parent_span_id.hex() == PARENT
    assert f"\r\ntraceparent: 00-{spans[1].trace_id.hex()}-{spans[1].span_id.hex()}-0" in head
    assert (streamed["qplan.class"], streamed["qplan.replica"], streamed["qplan.outcome"]) == ("chat", "a", "ok")
    assert streamed["gen_ai.usage.output_tokens"] in (8, 9)
    assert 0 < streamed["qplan.ttft_s"] < 5
    assert 0 < streamed["qplan.tpot_s"] < 5
    assert streamed["qplan.predicted_ttft_s"] > 0
    assert "qplan.ttft_s" not in whole
    assert (refused["qplan.outcome"], refused["http.response.status_code"]) == ("refused", 400)
