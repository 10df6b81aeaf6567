"""Multiple-choice questions: whether the model holds the right one of the given answers for the most likely.

Where texts can be scored, the chosen option is the one that the model finds most probable as the continuation of the
question; any model can be judged so, tuned to follow instructions or not. Elsewhere the question is asked with lettered
options, and the first letter of the answer that stands alone is taken.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.core.errors import MeasurementError
from qplan.measure.quality.paired import item_score
from qplan.measure.quality.results import Item, TaskResult, baseline_of
from qplan.measure.quality.scoring import Scorer
from qplan.measure.quality.sources import Load

if TYPE_CHECKING:
    from qplan.measure.quality.subject import Subject

ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Choice:
    """The task ``choice:NAME``; its metric is ``accuracy``."""

    name: str
    load: Load
    dimension: str = "knowledge"

    def run(self, subject: Subject, baseline: Sequence[TaskResult]) -> TaskResult:
        """Ask every question."""
        scorer = subject.scorer()
        questions = self.load()
        if isinstance(scorer, str):
            method = f"generation ({subject.endpoint.api})"
            reference = baseline_of(self.name, method, baseline)
            items = subject.judge(self.name, questions, lambda question: ask(question, subject))
        else:
            method = "log-likelihood"
            reference = baseline_of(self.name, method, baseline)
            items = tuple(weigh(question, scorer) for question in subject.follow(self.name, questions))
        score = item_score("accuracy", items, reference.items if reference else None)
        return TaskResult(self.name, self.dimension, method, (score,), items)


def weigh(question: Mapping[str, Any], scorer: Scorer) -> Item:
    """Choose the option with the highest log-probability.

    All options continue the same text, whose own log-probability is part of every sum and cancels.
    """
    try:
        sums = [
            sum(scorer.score(f"Question: {question['question']}\nAnswer: {option}").logprobs)
            for option in question["options"]
        ]
    except MeasurementError as error:
        return Item(question["id"], None, error=str(error))
    chosen = max(range(len(sums)), key=sums.__getitem__)
    detail = {"logprobs": [round(value, 4) for value in sums]}
    return Item(question["id"], float(chosen == question["answer"]), question["options"][chosen], detail=detail)


def ask(question: Mapping[str, Any], subject: Subject) -> Item:
    """Ask for the letter of the right option."""
    lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, question["options"], strict=False)]
    prompt = "\n".join([question["question"], *lines, "Answer with the letter of the right option only.", "Answer:"])
    try:
        answer = subject.ask(prompt, ANSWER_TOKENS)
    except MeasurementError as error:
        return Item(question["id"], None, error=str(error))
    return Item(question["id"], float(chosen_option(answer, question["options"]) == question["answer"]), answer)


def chosen_option(answer: str, options: Sequence[str]) -> int | None:
    """Read which option an answer names, by letter or else by its text; ``None`` when it names none, or several."""
    letters = string.ascii_uppercase[: len(options)]
    # "A" is also an article: a letter counts with a mark behind it, at the end, or after "answer is".
    found = re.search(rf"(?i:answer(?: is)?:?)\s*\(?([{letters}])\b|\b([{letters}])(?=[.):,]|\s*$)", answer)
    if found:
        return letters.index(found.group(1) or found.group(2))
    named = [index for index, option in enumerate(options) if option.casefold() in answer.casefold()]
    return named[0] if len(named) == 1 else None
