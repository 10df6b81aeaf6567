from pathlib import Path
from typing import Any

import pytest

from qplan.measure.quality import evaluate
from qplan.measure.quality.choice import Choice, chosen_option, weigh
from qplan.measure.quality.scoring import LlamaCppScorer

QUESTIONS = (
    {"id": "0", "question": "What is the capital of France?", "options": ["Berlin", "Paris", "Madrid"], "answer": 1},
    {"id": "1", "question": "What is frozen water called?", "options": ["ice", "steam", "fog"], "answer": 0},
)
OPTIONS = ("the Nile", "the Rhine", "the Danube", "the Amazon")


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1),
        ("B.", 1),
        ("(C)", 2),
        ("The answer is A because it flows there.", 0),
        ("Answer: D", 3),
        ("A river that flows through Cairo is the Nile.", 0),
        ("the Danube", 2),
        ("Both the Nile and the Rhine", None),
        ("I do not know", None),
        ("E", None),
        ("", None),
    ],
)
def test_reading_a_written_answer(answer: str, option: int | None) -> None:
    assert chosen_option(answer, OPTIONS) == option


def test_by_generation_where_texts_are_not_scored(serve: Any) -> None:
    def script(path: str, body: dict[str, Any]) -> str | tuple[int, dict[str, Any]]:
        if "messages" not in body:
            return 400, {}
        assert body["temperature"] == 0
        return "B" if "France" in body["messages"][0]["content"] else "C, I think"

    (result,) = evaluate(serve(script), [Choice("choice:test", lambda: QUESTIONS)])
    assert result.method == "generation (chat)"
    assert [item.score for item in result.items] == [1.0, 0.0]
    assert result.score("accuracy").score == 0.5


def test_by_log_likelihood_of_the_real_model(smollm2: Path) -> None:
    scorer = LlamaCppScorer(str(smollm2))
    try:
        items = [weigh(question, scorer) for question in QUESTIONS]
    finally:
        scorer.close()
    assert [item.answer for item in items] == ["Paris", "ice"]
    assert [item.score for item in items] == [1.0, 1.0]
    assert len(items[0].detail["logprobs"]) == 3
