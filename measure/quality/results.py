"""What judging quality leaves: every item's result, and each metric with its interval, alone and against a baseline.

Item results are kept and serialise to JSON, so that a baseline judged today can be paired with a quantized model
judged next month.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qplan.core.errors import InputError

JSON_VERSION = 1

DIMENSIONS = ("knowledge", "alignment", "efficiency")
"""The three dimensions of arXiv 2402.16775; a task belongs to one of the first two."""


@dataclass(frozen=True, slots=True)
class Item:
    """The result on one question, problem or passage.

    Attributes
    ----------
    id
        Name of the item inside its task; items are paired by it.
    score
        Value between 0 and 1, or the mean negative log-likelihood of a passage in nats; ``None`` when it could not be
        had.
    answer
        What the model wrote or chose.
    error
        Why there is no score.
    detail
        What the metrics need besides: JSON values only.
    """

    id: str
    score: float | None
    answer: str = ""
    error: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task.

    Attributes
    ----------
    metric
        Name of the metric: ``perplexity``, ``kl_divergence``, ``top1_agreement``, ``accuracy`` ...
    score
        Its value; ``None`` when it could not be measured.
    low, high
        95 % interval of the score.
    items
        Items that it rests on: questions, problems, or scored tokens.
    baseline_score
        Value of the baseline on the same items.
    change, change_low, change_high
        Score minus baseline's on the same items, and the 95 % interval of that difference.
    p_value
        Of McNemar's exact test, for items that are right or wrong.
    reason
        Why there is no score.
    """

    metric: str
    score: float | None
    low: float | None = None
    high: float | None = None
    items: int = 0
    baseline_score: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    p_value: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task's metrics and the items that they rest on.

    Attributes
    ----------
    task
        Name, such as ``choice:sample``.
    dimension
        ``knowledge`` or ``alignment``.
    method
        How it was judged: ``log-likelihood``, ``generation``, ``lm-eval 0.4.13``. Results are paired only within one.
    """

    task: str
    dimension: str
    method: str
    scores: tuple[Score, ...]
    items: tuple[Item, ...]

    def score(self, metric: str) -> Score:
        """Return the metric called `metric`."""
        for score in self.scores:
            if score.metric == metric:
                return score
        raise InputError(
            f"task {self.task} has no metric '{metric}'; it has {', '.join(s.metric for s in self.scores)}"
        )


def to_json(results: Iterable[TaskResult]) -> str:
    """Write results as JSON."""
    return json.dumps({"version": JSON_VERSION, "results": [asdict(result) for result in results]})


def from_json(text: str, where: str = "results") -> tuple[TaskResult, ...]:
    """Read results that :func:`to_json` wrote; `where` names the file in an error.

    Raises
    ------
    InputError
        The text is no JSON, not of this kind, or of another version.
    """
    try:
        stored = json.loads(text)
        if stored["version"] != JSON_VERSION:
            raise InputError(f"{where}: quality results of version {stored['version']}; expected {JSON_VERSION}")
        return tuple(
            TaskResult(
                task=result["task"],
                dimension=result["dimension"],
                method=result["method"],
                scores=tuple(Score(**score) for score in result["scores"]),
                items=tuple(Item(**item) for item in result["items"]),
            )
            for result in stored["results"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: not quality results written by qplan ({type(error).__name__}: {error})") from None


def baseline_of(task: str, method: str, baseline: Iterable[TaskResult]) -> TaskResult | None:
    """Return the baseline's result on `task`, or ``None`` where it has none.

    Raises
    ------
    InputError
        The baseline was judged by another method: its items do not pair.
    """
    for result in baseline:
        if result.task == task:
            if result.method != method:
                raise InputError(f"the baseline of {task} was judged by {result.method}, this by {method}; "
                                 f"judge the baseline again")  # fmt: skip
            return result
    return None
