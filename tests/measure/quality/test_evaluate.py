from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from qplan.core.errors import InputError, MeasurementError
from qplan.core.quantization import Quantization
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines import open_engine
from qplan.measure.engines.contract import Server, Serving
from qplan.measure.quality import evaluate, from_json, observation_rows, open_task, to_json
from qplan.measure.quality.scoring import open_scorer
from qplan.profiles.observations import from_rows

COLUMNS: dict[str, Any] = {
    "model": "SmolLM2-135M-Instruct", "quantization": "Q4_0", "gpu": "cpu", "tp": 1, "engine": "llamacpp",
    "engine_version": "1", "repeat": 0, "provenance": "measured", "source": "test",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real engine with the model in Q4_0 and a quantized KV cache."""
    folder = tmp_path_factory.mktemp("llamacpp")
    engine = open_engine("llamacpp")
    serving = Serving(COLUMNS["model"], str(smollm2), Quantization.parse("Q4_0-KV8-INT"), max_sequences=2)
    with engine.start(serving, engine.prepare(serving, folder), folder, deadline_s=120) as started:
        yield started


def test_the_real_engine_is_judged_and_observed(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    text = tmp_path / "text.txt"
    text.write_text("Bread needs four things: flour, water, salt and time. The first three can be bought.")
    tasks = [f"perplexity:{text}", "choice:sample[:3]", "instructions:sample[:2]"]
    results = evaluate(
        server, tasks, keep=tmp_path / "kept", progress=lambda task, done, total: told.append((task, done, total))
    )
    assert [result.task for result in results] == tasks
    perplexity, choice, instructions = results
    assert perplexity.method == choice.method == "log-likelihood"
    assert instructions.method == "generation (chat)"
    assert 1 < (perplexity.score("perplexity").score or 0) < 200
    assert all(item.answer for item in instructions.items)
    steps = [step for step in dict.fromkeys(told) if step[1]]  # told again while an item takes long
    assert steps == [(task, n + 1, total) for task, total in zip(tasks, (1, 3, 2), strict=True) for n in range(total)]

    assert isinstance(open_scorer(server.endpoint), str)  # llama.cpp's server itself scores no prompts
    again = evaluate(server, tasks[:2], baseline=from_json(to_json(results)))
    rows = observation_rows(again, COLUMNS)
    table = from_rows(rows, "test")
    assert table["metric"].to_pylist() == ["perplexity", "kl_divergence", "top1_agreement", "accuracy"]
    assert set(table["phase"].to_pylist()) == {"quality"}
    assert table["score_change"].to_pylist() == pytest.approx([0, 0, 0, 0], abs=1e-3)
    assert table["items"].to_pylist()[3] == 3


def test_a_metric_that_could_not_be_measured_is_a_row_with_its_reason(serve: Any) -> None:
    (result,) = evaluate(serve(lambda path, body: "x"), ["perplexity:english[:1]"])
    (row,) = observation_rows([result], COLUMNS)
    assert (row["status"], row["score"]) == ("failed", None)
    assert "no log-probabilities" in row["reason"]
    from_rows([row], "test")


def test_a_dead_server_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="cannot be reached"):
        evaluate(Endpoint("http://127.0.0.1:9", "m"), ["math:sample[:2]"])


def test_what_progress_raises_ends_the_evaluation(serve: Any) -> None:
    asked: list[str] = []

    def script(path: str, body: dict[str, Any]) -> str:
        asked.append(path)
        return "10"

    def stop(task: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(serve(script), ["math:sample"], concurrency=1, progress=stop)
    assert len(asked) < 20


def test_a_server_that_keeps_silent_does_not_keep_one_from_stopping(serve: Any) -> None:
    answering = Event()

    def script(path: str, body: dict[str, Any]) -> str:
        answering.wait(30)
        return "10"

    def stop(task: str, done: int, total: int) -> None:
        assert done == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(serve(script), ["math:sample[:3]"], progress=stop)
    answering.set()


def test_a_wrong_task_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(InputError, match="unknown quality task"):
        evaluate(Endpoint("http://127.0.0.1:9", "m"), ["math:sample", "nothing"])


def test_a_baseline_asked_through_another_api_is_refused(serve: Any) -> None:
    task = open_task("math:sample[:1]")
    baseline = evaluate(serve(lambda path, body: "10"), [task])
    with pytest.raises(InputError, match=r"judged by generation \(chat\), this by generation \(completions\)"):
        evaluate(serve(lambda path, body: "10"), [task], baseline=baseline, api="completions")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not quality results"),
        ("[]", "not quality results"),
        ('{"version": 99, "results": []}', "version 99; expected 1"),
        ('{"version": 1, "results": [{"task": "x"}]}', "not quality results"),
    ],
)
def test_stored_results_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"base.json: .*{message}"):
        from_json(text, "base.json")


def test_results_come_back_as_they_were(serve: Any) -> None:
    results = evaluate(serve(lambda path, body: "10"), ["math:sample[:3]"])
    assert from_json(to_json(results)) == results
    with pytest.raises(InputError, match="has no metric 'bleu'; it has exact_match"):
        results[0].score("bleu")
