import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.quality.scoring import Echo, LlamaCppScorer, PromptLogprobs, open_scorer

TEXT = "One, two, three."
COMMAND = ("python", "-P", "-m", "qplan.measure.engines.llamacpp_server", "--model", "m.gguf", "--cache-type-k", "q8_0")


def vllm(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer as vLLM does: first place empty, the prompt's own token first in each place, ranks from 1."""
    if "prompt_logprobs" not in body:
        return 400, {"error": "not here"}
    places = [
        None,
        {"7": {"logprob": -2.5, "rank": 3, "decoded_token": " two"}, "9": {"logprob": -0.5, "rank": 1}},
        {"8": {"logprob": -0.25, "rank": 1, "decoded_token": "."}, "9": {"logprob": -3.0, "rank": 2}},
    ]
    return 200, {"choices": [{"text": " x", "prompt_logprobs": places, "prompt_token_ids": [1, 7, 8]}]}


def echoing(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer ``echo`` as the old completions API does: the prompt's tokens and one generated."""
    if not body.get("echo"):
        return 200, {"choices": [{"text": " x"}]}
    logprobs = {
        "tokens": ["One", ",", " two.", " four"],
        "token_logprobs": [None, -0.5, -2.0, -0.1],
        "top_logprobs": [None, {",": -0.5, ".": -1.0}, {" three": -0.75}, {" four": -0.1}],
    }
    return 200, {"choices": [{"text": "", "logprobs": logprobs}]}


def ignoring(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer ``echo`` as llama.cpp does: with the generated token alone."""
    content = {"content": [{"token": " x", "logprob": -0.1, "top_logprobs": []}]}
    generated = {"tokens": [" x"], "token_logprobs": [-0.1], "top_logprobs": [{" x": -0.1}]}
    return 200, {"choices": [{"text": " x", "logprobs": content | generated}]}


def test_prompt_logprobs(serve: Any) -> None:
    scorer = open_scorer(serve(vllm))
    assert isinstance(scorer, PromptLogprobs)
    scores = scorer.score(TEXT)
    assert scores.tokens == ("7", "8")
    assert scores.logprobs == (-2.5, -0.25)
    assert scores.top1 == ("9", "8")
    assert scores.top is not None
    assert scores.top[1] == {"8": -0.25, "9": -3.0}


def test_as_many_alternatives_are_asked_as_the_server_was_started_for(serve: Any) -> None:
    asked: list[int] = []

    def script(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body["prompt_logprobs"])
        return vllm(path, body)

    served: Any = SimpleNamespace(endpoint=serve(script), command=("vllm", "serve", "m", "--max-logprobs", "40"))
    open_scorer(served)
    open_scorer(served.endpoint)
    assert asked == [40, 20]


def test_prompt_logprobs_of_a_server_that_gives_no_ids(serve: Any) -> None:
    def old(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, answer = vllm(path, body)
        del answer["choices"][0]["prompt_token_ids"]
        return status, answer

    assert PromptLogprobs(serve(old)).score(TEXT).tokens == ("7", "8")


def test_echo(serve: Any) -> None:
    scorer = open_scorer(serve(echoing))
    assert isinstance(scorer, Echo)
    scores = scorer.score(TEXT)
    assert scores.tokens == (",", " two.")
    assert scores.logprobs == (-0.5, -2.0)
    assert scores.top1 == (",", " three")


def test_a_server_that_scores_no_prompt_gives_the_reason(serve: Any) -> None:
    reason = open_scorer(serve(ignoring))
    assert isinstance(reason, str)
    assert "no log-probabilities of given tokens" in reason


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((401, {"error": "wrong key"}), "answered 401"),
        ((200, {"choices": [None]}), "unknown form"),
        ((200, {"choices": [{"prompt_logprobs": [None, {"7": -1.0}], "logprobs": [1]}]}), "unknown form"),
        ((200, {"choices": [{"logprobs": {"tokens": ["a", 7, "."], "token_logprobs": [1]}}]}), "unknown form"),
        ((200, {}), "without choices"),
    ],
)
def test_the_reason_says_what_the_server_answered(serve: Any, said: tuple[int, dict[str, Any]], why: str) -> None:
    reason = open_scorer(serve(lambda path, body: said))
    assert isinstance(reason, str)
    assert why in reason


def test_a_dead_server_is_an_error_not_a_reason() -> None:
    with pytest.raises(MeasurementError, match="cannot be reached"):
        open_scorer(Endpoint("http://127.0.0.1:9", "m"))


def test_the_chat_api_is_scored_by_completions(serve: Any) -> None:
    routes: list[str] = []

    def script(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        routes.append(path)
        return vllm(path, body)

    PromptLogprobs(serve(script)).score(TEXT)
    assert routes == ["/v1/completions"]


def test_a_llamacpp_server_is_scored_from_its_command() -> None:
    scorer = open_scorer(SimpleNamespace(endpoint=None, command=COMMAND))
    assert isinstance(scorer, LlamaCppScorer)
    assert scorer.whole
    scorer.close()


def test_scores_of_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    import numpy as np

    scorer = LlamaCppScorer(str(smollm2))
    try:
        text = "The capital of France is Paris."
        scores = scorer.score(text, tmp_path / "whole.npy")
        whole = np.load(tmp_path / "whole.npy")
        assert len(scores.tokens) == len(scores.logprobs) == len(scores.top1) == len(whole)
        # Each row is a distribution, and holds the token's own log-probability and the most probable token.
        assert np.exp(whole.astype(float)).sum(axis=1) == pytest.approx(1, abs=2e-3)
        own = [row[token] for row, token in zip(whole, scores.tokens, strict=True)]
        assert own == pytest.approx(scores.logprobs, abs=5e-3)
        assert tuple(whole.argmax(axis=1).tolist()) == scores.top1
        # A fact is more likely than a mistake, and a text scored behind another that begins alike scores the same.
        again = scorer.score(text)
        assert again.logprobs == pytest.approx(scores.logprobs, abs=0.05)
        wrong = scorer.score("The capital of France is Oslo.")
        assert sum(wrong.logprobs) < sum(scores.logprobs) - 1
        assert wrong.logprobs[:3] == pytest.approx(scores.logprobs[:3], abs=0.05)
        with pytest.raises(MeasurementError, match="fewer than two tokens"):
            scorer.score("")
        with pytest.raises(MeasurementError, match=r"has \d+ tokens, more than the context of 2048"):
            scorer.score("word " * 3000)
        assert scorer.score(text).logprobs == pytest.approx(scores.logprobs, abs=0.05)
    finally:
        scorer.close()


def test_a_coarse_kv_cache_changes_the_scores(smollm2: Path) -> None:
    fine, coarse = (
        LlamaCppScorer(str(smollm2)),
        LlamaCppScorer(str(smollm2), ("--cache-type-k", "q4_0", "--cache-type-v", "q4_0", "--flash-attn", "on")),
    )
    text = "A glacier is a river that takes its time. Snow falls on high ground and does not melt in summer."
    try:
        a, b = fine.score(text), coarse.score(text)
        assert a.tokens == b.tokens
        assert 1e-3 < max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)) < 5
    finally:
        fine.close()
        coarse.close()


@pytest.mark.parametrize(
    ("gguf", "flags", "message"),
    [
        ("/nowhere/m.gguf", (), "cannot load /nowhere/m.gguf"),
        (None, ("--cache-type-k", "q9_9"), "invalid choice: 'q9_9'"),
        (None, ("--cache-type-v", "q4_0", "--flash-attn", "off"), "flash_attn"),
    ],
)
def test_what_cannot_be_loaded_says_why(gguf: str | None, flags: tuple[str, ...], message: str, smollm2: Path) -> None:
    scorer = LlamaCppScorer(gguf or str(smollm2), flags)
    try:
        with pytest.raises(MeasurementError, match=message):
            scorer.score(TEXT)
    finally:
        scorer.close()


def test_a_scorer_that_is_killed_says_so_and_starts_anew(smollm2: Path) -> None:
    scorer = LlamaCppScorer(str(smollm2))
    try:
        before = scorer.score(TEXT)
        assert scorer._child is not None
        scorer._child.kill()
        with pytest.raises(MeasurementError, match="ended with code -9"):
            scorer.score(TEXT)
        assert scorer.score(TEXT).logprobs == pytest.approx(before.logprobs, abs=0.05)
    finally:
        scorer.close()


def test_context_parameters_of_an_unknown_layout_are_refused() -> None:
    from qplan.measure.quality.llamacpp_scores import set_context

    known = [512, 2048, 512, 1, 0, 0, 4, 4, 0, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1] + [0] * 20
    words = list(known)
    set_context(words, 1024, [8, 2], "on")
    assert words[:4] == [1024, 1024, 512, 1]
    assert words[9:13] == [-1, -1, -1, 1]
    assert words[26:28] == [8, 2]
    for wrong in (known[1:], [*known[:12], 0, *known[13:]], [*known[:26], 30, *known[27:]]):
        with pytest.raises(MeasurementError, match="llama_context_params"):
            set_context(list(wrong), 1024, [1, 1], "auto")


def test_logprobs_are_json_numbers(serve: Any) -> None:
    scores = PromptLogprobs(serve(vllm)).score(TEXT)
    assert all(math.isfinite(value) for value in json.loads(json.dumps(scores.logprobs)))
