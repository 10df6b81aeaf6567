from typing import Any

import pytest

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.quality import evaluate, open_task
from qplan.measure.quality.constraints import CHECKS, follows
from qplan.measure.quality.generation import instruction_task, last_number, math_task, summary_task


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("3 + 4 = 7", 7),
        ("It costs $1,234.50 in all", 1234.5),
        ("from 10-12", 12),
        ("below zero: -5", -5),
        ("1, 2, 3", 3),
        ("#### 1,000", 1000),
        ("none", None),
    ],
)
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("check", "met", "missed"),
    [
        ({"words": 3}, "clear and blue", "clear blue"),
        ({"min_words": 2}, "two words", "one"),
        ({"max_words": 2}, "two words", "one two three"),
        ({"lines": 2}, "apple\n\npear", "apple, pear"),
        ({"sentences": 1}, "The sea is 3.5 m deep.", "One. Two."),
        ({"contains": "Blue"}, "a blue sea", "a green sea"),
        ({"absent": "cat"}, "a small animal", "my Cat"),
        ({"starts": "Tomorrow"}, '"Tomorrow we go."', "We go tomorrow."),
        ({"matches": r"night\W*$"}, "A long night.", "A night long."),
        ({"case": "lower"}, "monday", "Monday"),
        ({"case": "upper"}, "COLD!", "Cold"),
        ({"json": {"name": "Ada"}}, '```json\n{"name": "Ada"}\n```', "name: Ada"),
    ],
)
def test_each_check(check: dict[str, Any], met: str, missed: str) -> None:
    assert follows(met, [check])
    assert not follows(missed, [check])


def test_every_check_is_tested_above() -> None:
    marks = test_each_check.pytestmark
    assert {name for check, _, _ in marks[0].args[1] for name in check} == set(CHECKS)


def test_all_constraints_must_be_met_and_silence_meets_none() -> None:
    assert follows("blue sea", [{"contains": "blue"}, {"words": 2}])
    assert not follows("blue", [{"contains": "blue"}, {"words": 2}])
    assert not follows("  ", [{"absent": "cat"}])


def test_an_unknown_check_is_named() -> None:
    task = instruction_task("instructions:x", lambda: [{"id": "i", "instruction": "Say a.", "checks": [{"wrods": 1}]}])
    with pytest.raises(InputError, match=r"instructions:x, item i: unknown check 'wrods'.*did you mean 'words'"):
        task.prompts()


def test_math_is_scored_by_the_last_number_and_paired(serve: Any) -> None:
    items = [{"id": str(n), "question": f"What is {n} plus {n}?", "answer": 2 * n} for n in range(4)]
    task = math_task("math:test", lambda: items)
    right = serve(lambda path, body: f"The answer is {2 * int(asked(body).split()[2])}.")
    worse = serve(lambda path, body: "The answer is 4.")
    baseline = evaluate(right, [task])
    assert baseline[0].score("exact_match").score == 1.0
    (result,) = evaluate(worse, [task], baseline=baseline)
    score = result.score("exact_match")
    assert (score.score, score.baseline_score, score.change) == (0.25, 1.0, -0.75)
    assert score.p_value == pytest.approx(0.25)


def test_summaries_are_scored_by_rouge(serve: Any) -> None:
    task = summary_task("summaries:test", lambda: [{"id": "s", "text": "A long text.", "summary": "a b c d"}])
    (result,) = evaluate(serve(lambda path, body: "a b"), [task])
    assert result.score("rouge_l").score == pytest.approx(2 / 3)


def test_requests_carry_seed_and_length(serve: Any) -> None:
    bodies: list[dict[str, Any]] = []

    def script(path: str, body: dict[str, Any]) -> str:
        bodies.append(body)
        return "x"

    evaluate(serve(script), [open_task("instructions:sample[:2]")], seed=7)
    assert {(body["seed"], body["temperature"], body["max_tokens"]) for body in bodies} == {(7, 0.0, 96)}
    assert len(bodies) == 2


def test_an_item_without_an_answer_is_left_out_not_wrong(serve: Any) -> None:
    def script(path: str, body: dict[str, Any]) -> str | tuple[int, dict[str, Any]]:
        return (500, {"error": "out of slots"}) if "apples" in asked(body) else "The answer is 7."

    (result,) = evaluate(serve(script), [open_task("math:sample[:2]")])
    assert [item.score for item in result.items] == [None, 1.0]
    assert "answered 500" in str(result.items[0].error)
    assert result.score("exact_match").items == 1


@pytest.mark.parametrize(
    "said",
    [
        (200, {"error": {"message": "overloaded"}}),
        (200, {"choices": []}),
        (200, {"choices": [{"message": {"content": None}}]}),
        (503, {"error": "loading"}),
    ],
)
def test_a_server_that_answers_nothing_is_an_error(serve: Any, said: tuple[int, dict[str, Any]]) -> None:
    with pytest.raises(MeasurementError, match="no item of math:sample\\[:2\\] was answered"):
        evaluate(serve(lambda path, body: said), [open_task("math:sample[:2]")])
