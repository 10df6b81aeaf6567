import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qplan.core.errors import MeasurementError
from qplan.measure.quality import evaluate, from_json, open_task, to_json
from qplan.measure.quality.lm_eval import program, read_results


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a command that behaves like lm-eval first on the path."""
    script = Path(__file__).with_name("scripted_lm_eval.py")
    path = tmp_path / "bin" / "lm_eval"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_metrics_and_items_paired(serve: Any, command: Path) -> None:
    assert program() == [str(command)]
    (baseline,) = evaluate(serve(lambda path, body: "8"), ["lm-eval:arc_easy"])
    (result,) = evaluate(serve(lambda path, body: "6"), ["lm-eval:arc_easy"], baseline=from_json(to_json([baseline])))
    assert result.method == "lm-eval (chat)"
    accuracy = result.score("acc")
    assert (accuracy.score, accuracy.baseline_score, accuracy.items) == (0.6, 0.8, 10)
    assert accuracy.change == pytest.approx(-0.2)
    assert accuracy.p_value == 0.5
    assert result.score("exact_match,flexible-extract").change == pytest.approx(-0.2)
    assert result.items[0].id == "arc_easy/0"


def test_a_metric_that_is_no_mean_of_items_keeps_its_own_error(serve: Any, command: Path) -> None:
    (baseline,) = evaluate(serve(lambda path, body: "8"), ["lm-eval:arc_easy"])
    (result,) = evaluate(serve(lambda path, body: "6"), ["lm-eval:arc_easy"], baseline=[baseline])
    perplexity = result.score("perplexity")
    assert (perplexity.score, perplexity.low, perplexity.high) == pytest.approx((12.5, 11.52, 13.48))
    assert (perplexity.baseline_score, perplexity.change, perplexity.change_low) == (12.5, 0.0, None)


def test_limit_and_chat_are_handed_on(serve: Any, command: Path) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = []

    def script(path: str, body: dict[str, Any]) -> str:
        bodies.append((path, body))
        return "2"

    (result,) = evaluate(serve(script), ["lm-eval:gsm8k[:4]"])
    assert len(result.items) == 4
    assert [path for path, body in bodies if body.get("chat")] == ["/v1/chat/completions"]
    assert open_task("lm-eval:truthfulqa_mc1").dimension == "alignment"


def test_a_server_that_scores_prompts_is_asked_by_completions(serve: Any, command: Path) -> None:
    def script(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        place = {"7": {"logprob": -1.0, "rank": 1}}
        return 200, {"choices": [{"text": "2", "prompt_logprobs": [None, place], "prompt_token_ids": [1, 7]}]}

    (result,) = evaluate(serve(script), ["lm-eval:arc_easy[:4]"])
    assert result.method == "lm-eval (completions)"
    assert result.score("acc").score == 0.5


def test_its_failure_is_told_with_its_last_lines(serve: Any, command: Path) -> None:
    with pytest.raises(MeasurementError, match=r"ended with code 1: .*ValueError: Tasks not found: broken"):
        evaluate(serve(lambda path, body: "1"), ["lm-eval:broken"])


def test_it_is_ended_when_progress_says_so(serve: Any, command: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    command.write_text(f'#!/bin/sh\necho $$ > "{mark}"\nexec sleep 60\n')

    def stop(task: str, done: int, total: int) -> None:
        if mark.exists() and mark.read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(serve(lambda path, body: "1"), ["lm-eval:arc_easy"], progress=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("qplan.measure.quality.lm_eval.find_spec", lambda name: None)
    with pytest.raises(MeasurementError, match="pip install 'lm-eval\\[api\\]'"):
        program()


def test_results_that_are_not_as_expected(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="left no results"):
        read_results(tmp_path, "x")
    (tmp_path / "results_1.json").write_text('{"results": {"y": {"acc,none": 1}}}')
    with pytest.raises(MeasurementError, match="no results of x; it has y"):
        read_results(tmp_path, "x")
    (tmp_path / "results_1.json").write_text("[]")
    with pytest.raises(MeasurementError, match="not as expected"):
        read_results(tmp_path, "x")
