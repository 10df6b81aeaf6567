"""What a client sees of the router, before real processes of replicas that fail on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.router.live import Replica, Router, ask, fleet, get, texts, wait_for

LIMITS = "limits: {body: 100KiB, stall: 1s, first_token: 1s, health: 200ms, wait: 2s}\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, Replica, Replica]]:
    a, b = Replica("a", itl_s=0.004), Replica("b", itl_s=0.004)
    with fleet(tmp_path_factory.mktemp("router"), [a, b], extra=LIMITS) as router:
        yield router, a, b


@pytest.fixture
def well(pair: tuple[Router, Replica, Replica]) -> Iterator[tuple[Router, Replica, Replica]]:
    """The pair with nothing wrong, before and after the test."""
    router, a, b = pair
    yield pair
    for replica in (a, b):
        replica.fault("")
    # A request mends the circuit of a replica that is on trial; the policy prefers the first.
    wait_for(lambda: [ask(router.url) for _ in range(2)] and set(router.health()["replicas"].values()) == {"up"})


def test_whole_answers_come_unchanged(well: tuple[Router, Replica, Replica]) -> None:
    router, a, _ = well
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
        ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 3}),
    ):
        data = json.dumps({"model": "m", **body}).encode()
        status, answer, fields = get(router.url + path, data)
        assert (status, fields["content-type"]) == (200, "application/json")
        assert fields["x-qplan-replica"] in ("a", "b")
        direct = get(a.url + path, data)[1]
        assert json.loads(answer.replace(b"b:", b"a:")) == json.loads(direct)


def test_streams_come_unchanged(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    status, answer, fields = ask(router.url, stream=True, stream_options={"include_usage": True})
    served = {"a": a, "b": b}[fields["x-qplan-replica"]]
    number = served.seen()["count"]
    _, direct, _ = ask(served.url, stream=True, stream_options={"include_usage": True})
    assert status == 200
    assert fields["content-type"] == "text/event-stream; charset=utf-8"
    assert answer == direct.replace(b":%d:" % (number + 1), b":%d:" % number)


def test_the_body_reaches_the_replica_byte_for_byte(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"π": 1.0}}}]
    document = {"messages": [{"role": "user", "content": "é\u2028"}], "tools": tools, "big": 2**60, "x": 1e-7}
    body = json.dumps({**document, "model": "m", "max_tokens": 1, "stream_options": {"include_usage": True}}, indent=3)
    fields = get(f"{router.url}/v1/chat/completions", body.encode(), {"Authorization": "Bearer secret"})[2]
    seen = {"a": a, "b": b}[fields["x-qplan-replica"]].seen()
    assert seen["last"] == body
    assert "secret" not in seen["head"]


def test_models_and_other_routes(well: tuple[Router, Replica, Replica]) -> None:
    router, _, _ = well
    status, answer, _ = get(f"{router.url}/v1/models")
    assert status == 200
    assert [model["id"] for model in json.loads(answer)["data"]] == ["m"]
    for path, body, expected in (
        ("/v1/embeddings", b"{}", 404),
        ("/", None, 404),
        ("/v1/chat/completions", None, 405),
        ("/v1/models", b"{}", 405),
    ):
        status, answer, _ = get(router.url + path, body)
        assert status == expected
        assert json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 5000, 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b'{"messages": []}', 400, "invalid_messages"),
        (b'{"messages": [{}], "stream": "yes"}', 400, "invalid_stream"),
        (b'{"messages": [{}], "model": 3}', 400, "invalid_model"),
        (b'{"messages": [{"content": "' + b"x" * 200_000 + b'"}]}', 413, "request_too_large"),
    ],
)
def test_bad_requests_are_refused_here(
    well: tuple[Router, Replica, Replica], body: bytes, status: int, code: str
) -> None:
    router, a, b = well
    before = a.seen()["count"] + b.seen()["count"]
    found, answer, _ = get(f"{router.url}/v1/chat/completions", body)
    assert (found, json.loads(answer)["error"]["code"]) == (status, code)
    assert a.seen()["count"] + b.seen()["count"] == before


def test_an_unknown_class_is_refused(well: tuple[Router, Replica, Replica]) -> None:
    router, _, _ = well
    status, answer, _ = ask(router.url, {"x-qplan-class": "batch"})
    assert status == 400
    assert "chat" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "stream"),
    [(fault, stream) for fault in ("garbage", "busy", "fails", "error_body") for stream in (True, False)]
    + [("silent", True)],  # an answer that is not streamed may take ten minutes
)
def test_another_replica_answers_what_one_could_not(
    well: tuple[Router, Replica, Replica], fault: str, stream: bool
) -> None:
    router, a, b = well
    first, other = (a, b) if ask(router.url)[2]["x-qplan-replica"] == "a" else (b, a)
    first.fault(fault)
    status, answer, fields = ask(router.url, stream=stream)
    assert status == 200
    assert fields["x-qplan-replica"] == other.name
    assert len(texts(answer)) == 8 if stream else json.loads(answer)["choices"]


def test_an_error_as_first_event_is_tried_elsewhere(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    first = a if ask(router.url)[2]["x-qplan-replica"] == "a" else b
    first.fault("error_first")
    assert len(texts(ask(router.url, stream=True)[1])) == 8


@pytest.mark.parametrize("fault", ["cut", "half_event", "late_garbage", "stalls", "error_event"])
def test_a_stream_that_breaks_ends_with_an_error_event(well: tuple[Router, Replica, Replica], fault: str) -> None:
    router, a, b = well
    a.fault(fault)
    b.fault(fault)
    broken = router.outcomes().get("broken", 0)
    status, answer, _ = ask(router.url, stream=True)
    events = [event for event in answer.split(b"\n\n") if event]
    documents = [json.loads(event.removeprefix(b"data: ")) for event in events if event != b"data: [DONE]"]
    assert status == 200
    assert [text[-2:] for text in texts(answer)] == ["0 ", "1 ", "2 "]
    assert documents[-1]["error"]["message"]
    assert all("error" not in document for document in documents[:-1])
    assert router.outcomes()["broken"] == broken + 1


def test_a_refusal_by_the_replica_is_passed_on(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    for replica in (a, b):
        replica.fault("refuses")
    before = a.seen()["count"] + b.seen()["count"]
    status, answer, fields = ask(router.url)
    assert (status, json.loads(answer)["error"]["code"], fields["x-request-id"]) == (400, "bad", "42")
    assert a.seen()["count"] + b.seen()["count"] == before + 1
    assert set(router.health()["replicas"].values()) == {"up"}


def test_what_all_replicas_say_is_passed_on(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    a.fault("busy")
    b.fault("busy")
    status, _, fields = ask(router.url)
    assert (status, fields["retry-after"]) == (429, "7")


def test_a_long_answer_that_is_not_streamed(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    a.fault("large")
    b.fault("large")
    status, answer, _ = ask(router.url)
    assert status == 200
    assert len(json.loads(answer)["choices"][0]["message"]["content"]) > 2**23


def test_a_sick_replica_is_left_alone_until_it_is_well(well: tuple[Router, Replica, Replica]) -> None:
    router, a, _ = well
    a.fault("sick")
    wait_for(lambda: router.health()["replicas"]["a"] == "down")
    assert ask(router.url)[2]["x-qplan-replica"] == "b"
    a.fault("")
    wait_for(lambda: router.health()["replicas"]["a"] == "up")
    assert ask(router.url)[2]["x-qplan-replica"] in ("a", "b")


def test_nothing_left_to_ask(well: tuple[Router, Replica, Replica]) -> None:
    router, a, b = well
    for replica in (a, b):
        replica.fault("sick")
    wait_for(lambda: set(router.health()["replicas"].values()) == {"down"})
    assert get(f"{router.url}/health")[0] == 503
    status, answer, fields = ask(router.url)
    assert (status, json.loads(answer)["error"]["code"]) == (503, "no_replica")
    assert int(fields["retry-after"]) >= 1


def test_every_request_is_counted_once(well: tuple[Router, Replica, Replica]) -> None:
    router, _, _ = well
    before = sum(router.outcomes().values())
    for stream in (True, False):
        ask(router.url, stream=stream)
    get(f"{router.url}/v1/chat/completions", b"{")
    assert sum(router.outcomes().values()) == before + 3
    assert sum(value for name, value in router.metrics().items() if name.startswith("qplan_router_in_flight")) == 0


def test_metrics_say_what_was_predicted_and_seen(well: tuple[Router, Replica, Replica]) -> None:
    router, _, _ = well
    ask(router.url, stream=True)
    found = router.metrics()
    for name in ("ttft_seconds_count", "ttft_observed_ratio_count", "tokens_total", "predicted_energy_joules_total"):
        assert any(key.startswith(f"qplan_router_{name}") and value > 0 for key, value in found.items()), name


def test_the_log_is_json_and_names_no_text(well: tuple[Router, Replica, Replica]) -> None:
    router, _, _ = well
    ask(router.url, messages=[{"role": "user", "content": "a private matter"}])
    requests: list[dict[str, Any]] = wait_for(lambda: router.events("request"))
    assert requests[-1]["outcome"]
    assert "private" not in router.log
    assert not router.events("bug")
