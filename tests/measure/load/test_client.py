"""Whatever a server does, the client makes one clear record of it and goes on."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import NOT_SAID, Outcome, Requests
from qplan.measure.load.run import run_load
from tests.measure.fake_server import fake_server

TOKENS = 10
PROMPT = Prompt("one two three", 3, TOKENS)


def ask(url: str, model: str = "fake", api: str = "completions", count: int = 2, timeout_s: float = 10.0) -> Requests:
    return run_load(Endpoint(url, model, api), np.linspace(0, 0.1 * (count - 1), count), [PROMPT], timeout_s=timeout_s)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_tokens_and_times(url: str, api: str) -> None:
    requests = ask(url, api=api)
    assert requests.ok.all()
    assert requests.input_tokens.tolist() == [3, 3]
    assert requests.output_tokens.tolist() == [TOKENS, TOKENS]
    assert np.diff(requests.offsets).tolist() == [TOKENS, TOKENS]
    # A busy machine makes it later, nothing makes it earlier.
    assert (requests.ttft_s >= 0.02).all()
    assert (requests.e2e_s >= 0.02 + (TOKENS - 1) * 0.004).all()
    assert (requests.sent_s >= requests.scheduled_s).all()
    assert (requests.end_s >= requests.sent_s + requests.e2e_s).all()


@pytest.mark.parametrize(
    "quirk", ["half_utf8", "split", "crlf", "no_done", "slow_headers", "refuses_ignore_eos", "stale"]
)
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_what_a_client_must_not_mind(url: str, api: str, quirk: str) -> None:
    requests = ask(url, quirk, api)
    assert requests.reason == ("", "")
    assert np.diff(requests.offsets).tolist() == [TOKENS, TOKENS]


@pytest.mark.parametrize(
    ("fault", "outcome", "words"),
    [
        ("401", Outcome.FAILED, "HTTP 401: Invalid API key (is the API key right?)"),
        ("500", Outcome.FAILED, "HTTP 500: out of memory"),
        ("error_body", Outcome.FAILED, "200 with an error: model is loading"),
        ("error_event", Outcome.FAILED, "the engine died"),
        ("garbage", Outcome.FAILED, "not an event stream"),
        ("cut_utf8", Outcome.TRUNCATED, "ended inside an event"),
        ("closes", Outcome.TRUNCATED, "closed the connection in mid-answer, after 5 chunks"),
        ("short", Outcome.TRUNCATED, "5 of 10 tokens, no finish_reason"),
        ("empty", Outcome.EMPTY, "no text"),
    ],
)
def test_failures_are_told_apart(url: str, fault: str, outcome: Outcome, words: str) -> None:
    requests = ask(url, fault)
    assert [request.outcome for request in requests] == [outcome, outcome]
    assert all(words in reason for reason in requests.reason)
    assert requests.failed.all()
    assert np.isnan(requests.e2e_s).all()


@pytest.mark.parametrize("fault", ["endless", "hangs"])
def test_the_deadline_ends_what_does_not_end(url: str, fault: str) -> None:
    requests = ask(url, fault, timeout_s=0.4)
    assert requests.reason == ("not over after 0.4 s",) * 2
    assert (requests.outcome == Outcome.TIMEOUT).all()
    assert (requests.end_s - requests.sent_s > 0.39).all()
    assert (np.diff(requests.offsets) > 0).all() == (fault == "endless")


def test_one_fault_does_not_touch_the_other_requests() -> None:
    with fake_server(fault="closes", fault_every=3) as address:
        requests = ask(address, count=6)
    assert [request.outcome.name for request in requests] == ["OK", "OK", "TRUNCATED"] * 2


def test_without_usage_tokens_are_unknown_not_guessed(url: str) -> None:
    requests = ask(url, "no_usage")
    assert requests.ok.all()
    assert (requests.output_tokens == NOT_SAID).all()
    assert np.isnan(requests.tpot_s).all()


def test_the_key_is_sent_and_never_recorded() -> None:
    key = "a-secret-key"
    with fake_server(api_key=key) as address:
        right = run_load(Endpoint(address, "fake", api_key=key), np.zeros(1), [PROMPT], timeout_s=10)
        wrong = run_load(Endpoint(address, "fake", api_key="another"), np.zeros(1), [PROMPT], timeout_s=10)
    assert right.ok.all()
    assert "401" in wrong.reason[0]
    assert key not in repr(right) + repr(wrong)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9", "cannot connect to 127.0.0.1:9: Connection refused"),
        ("http://no-such-host.invalid", "cannot find no-such-host.invalid"),
        ("https://127.0.0.1:9", "cannot connect to 127.0.0.1:9"),
    ],
)
def test_a_dead_url_is_a_record(address: str, words: str) -> None:
    requests = ask(address)
    assert all(words in reason for reason in requests.reason)


def test_a_server_that_speaks_no_tls_is_a_record(url: str) -> None:
    requests = ask(url.replace("http:", "https:"), timeout_s=0.5)
    assert requests.failed.all()


def test_token_ids_are_for_completions_only(url: str) -> None:
    prompts = [Prompt((5, 6, 7, 8), 4, TOKENS)]
    requests = run_load(Endpoint(url, "fake"), np.zeros(1), prompts, timeout_s=10)
    assert requests.input_tokens.tolist() == [4]
    with pytest.raises(InputError, match="completions"):
        run_load(Endpoint(url, "fake", "chat"), np.zeros(1), prompts, timeout_s=10)
