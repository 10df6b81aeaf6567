"""Tasks that let the model write and judge what it wrote: arithmetic, instructions, summaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.core.errors import MeasurementError
from qplan.measure.quality.constraints import follows, require_known
from qplan.measure.quality.paired import item_score
from qplan.measure.quality.results import Item, TaskResult, baseline_of
from qplan.measure.quality.rouge import rouge_l
from qplan.measure.quality.sources import Load

if TYPE_CHECKING:
    from qplan.measure.quality.subject import Subject

_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked, and how its answer is scored, 0 to 1."""

    id: str
    text: str
    score: Callable[[str], float]


@dataclass(frozen=True, slots=True)
class Generation:
    """A task whose answers are written.

    Attributes
    ----------
    metric
        ``exact_match``, ``hard_satisfaction_rate`` or ``rouge_l``.
    max_tokens
        Longest answer.
    prompts
        Loads what is asked.
    """

    name: str
    dimension: str
    metric: str
    max_tokens: int
    prompts: Callable[[], Sequence[Prompt]]

    def run(self, subject: Subject, baseline: Sequence[TaskResult]) -> TaskResult:
        """Ask every prompt, greedily."""
        method = f"generation ({subject.endpoint.api})"
        reference = baseline_of(self.name, method, baseline)

        def judge(prompt: Prompt) -> Item:
            try:
                answer = subject.ask(prompt.text, self.max_tokens)
            except MeasurementError as error:
                return Item(prompt.id, None, error=str(error))
            return Item(prompt.id, prompt.score(answer), answer)

        items = subject.judge(self.name, self.prompts(), judge)
        score = item_score(self.metric, items, reference.items if reference else None)
        return TaskResult(self.name, self.dimension, method, (score,), items)


def math_task(name: str, load: Load) -> Generation:
    """Word problems whose last number must be the right one, as GSM8K is scored (arXiv 2110.14168)."""
    ask = "\nThink step by step. End with a last line that says 'The answer is' and the number.\n"

    def exact(right: float) -> Callable[[str], float]:
        return lambda answer: float(last_number(answer) == right)

    def prompts() -> list[Prompt]:
        return [Prompt(item["id"], item["question"] + ask, exact(float(item["answer"]))) for item in load()]

    return Generation(name, "knowledge", "exact_match", 256, prompts)


def instruction_task(name: str, load: Load) -> Generation:
    """Instructions whose every constraint must be met."""

    def met(checks: Sequence[Mapping[str, Any]]) -> Callable[[str], float]:
        return lambda answer: float(follows(answer, checks))

    def prompts() -> list[Prompt]:
        items = load()
        for item in items:
            require_known(item["checks"], f"{name}, item {item['id']}")
        return [Prompt(item["id"], item["instruction"], met(item["checks"])) for item in items]

    return Generation(name, "alignment", "hard_satisfaction_rate", 96, prompts)


def summary_task(name: str, load: Load) -> Generation:
    """Texts to be summed up in one or two sentences, scored by ROUGE-L against a reference."""
    ask = "Summarize this text in one or two sentences.\n\n{}\n\nSummary:"

    def overlap(reference: str) -> Callable[[str], float]:
        return lambda answer: rouge_l(answer, reference)

    def prompts() -> list[Prompt]:
        return [Prompt(item["id"], ask.format(item["text"]), overlap(item["summary"])) for item in load()]

    return Generation(name, "knowledge", "rouge_l", 96, prompts)


def last_number(text: str) -> float | None:
    """Return the last number in a text, thousands separated by commas or not."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
