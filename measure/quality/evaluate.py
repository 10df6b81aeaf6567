"""Judging a server on several tasks, and what observations it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qplan.core.errors import MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.engines.contract import Server
from qplan.measure.quality.results import Score, TaskResult
from qplan.measure.quality.subject import Progress, Subject
from qplan.measure.quality.tasks import Task, open_task


def evaluate(
    served: Server | Endpoint,
    tasks: Iterable[Task | str],
    *,
    baseline: Sequence[TaskResult] = (),
    api: str = "chat",
    keep: Path | None = None,
    concurrency: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[TaskResult, ...]:
    """Judge a server.

    A llama.cpp server of ours is also read in process: its weights are scored by a child that loads them again.

    Parameters
    ----------
    served
        The server, or where one answers.
    tasks
        Tasks, or names of them.
    baseline
        Results of the unquantized model on the same tasks, to be paired with.
    api
        How the model is asked, whatever the endpoint's own API, which is that of the load: ``chat`` for a model tuned
        to follow instructions, ``completions`` for any other.
    keep
        Folder of its own to keep whole distributions in, when `served` is a baseline: without them there is no KL
        divergence of an engine that gives them. Two bytes times scored tokens times vocabulary.
    concurrency
        Requests in flight.
    seed
        Seed of every request.
    progress
        Called after each item; what it raises ends the evaluation.

    Returns
    -------
    tuple of TaskResult
        One for each task. What could not be measured has a score of ``None`` and a reason.

    Raises
    ------
    InputError
        A task or its items are not there, or the baseline was judged by another method.
    MeasurementError
        The server is dead, or no item of a task could be judged for want of a server that answers.
    """
    opened = [open_task(task) if isinstance(task, str) else task for task in tasks]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    results = []
    with Subject(served, api=api, keep=keep, concurrency=concurrency, seed=seed, progress=progress) as subject:
        for task in opened:
            result = task.run(subject, baseline)
            if not isinstance(served, Endpoint):
                served.check()
            _require_answers(result)
            results.append(result)
    return tuple(results)


def observation_rows(results: Iterable[TaskResult], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the observations of `results`, one for each metric, with the identity and provenance in `columns`.

    A metric that could not be measured is a row of status ``failed`` with the reason.
    """
    return [
        {**columns, "phase": "quality", "task": result.task, **_row(score)}
        for result in results
        for score in result.scores
    ]


def _row(score: Score) -> dict[str, Any]:
    return {
        "metric": score.metric,
        "status": "ok" if score.score is not None else "failed",
        "reason": score.reason,
        "score": score.score,
        "score_low": score.low,
        "score_high": score.high,
        "baseline_score": score.baseline_score,
        "score_change": score.change,
        "score_change_low": score.change_low,
        "score_change_high": score.change_high,
        "items": score.items or None,
    }


def _require_answers(result: TaskResult) -> None:
    """Refuse a task none of whose requests was answered: that is a dead server, not a quality."""
    errors = [item.error for item in result.items if item.error]
    if result.method.startswith("generation") and errors and len(errors) == len(result.items):
        raise MeasurementError(f"no item of {result.task} was answered: {errors[0]}")
