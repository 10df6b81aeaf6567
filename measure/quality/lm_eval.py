"""Any task of EleutherAI's lm-evaluation-harness, run by its own command in a process of its own.

Its results file gives the metrics, its sample files the result of each item, so that these tasks are paired with their
baseline like all others. Read from the formats of lm-eval 0.4.13.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qplan.core.errors import MeasurementError
from qplan.measure.quality.paired import item_score
from qplan.measure.quality.results import Item, Score, TaskResult, baseline_of
from qplan.measure.quality.scoring import Echo, PromptLogprobs

if TYPE_CHECKING:
    from qplan.measure.quality.subject import Subject

_TICK_S = 0.5
_STANDARD_ERRORS = 1.96  # half a 95 % interval


@dataclass(frozen=True, slots=True)
class LmEval:
    """The task ``lm-eval:NAME``.

    Attributes
    ----------
    task
        What lm-eval calls it.
    limit
        First items of each of its tasks to take; ``None`` for all.
    """

    name: str
    task: str
    limit: int | None = None
    dimension: str = "knowledge"

    def run(self, subject: Subject, baseline: Sequence[TaskResult]) -> TaskResult:
        """Run lm-eval against the server."""
        api = self.api(subject)
        method = f"lm-eval ({api})"
        reference = baseline_of(self.name, method, baseline)
        with tempfile.TemporaryDirectory(prefix="qplan-lm-eval-") as folder:
            command = [*program(), *self.arguments(subject, api, Path(folder))]
            _run(command, subject.endpoint.api_key, lambda: subject.tell(self.name, 0, 1))
            metrics, items = read_results(Path(folder), self.task)
        scores = tuple(paired(score, items, reference) for score in metrics)
        return TaskResult(self.name, self.dimension, method, scores, items)

    def api(self, subject: Subject) -> str:
        """Return how lm-eval asks: by completions where the server scores given text, for many of its tasks do that."""
        return "completions" if scores_prompts(subject) else subject.endpoint.api

    def arguments(self, subject: Subject, api: str, folder: Path) -> list[str]:
        """Return lm-eval's arguments for a server."""
        endpoint = replace(subject.endpoint, api=api)
        model = f"model={endpoint.model},base_url={endpoint.route},num_concurrent=4,tokenized_requests=False"
        chat = api == "chat"
        if not scores_prompts(subject):
            model += ",tokenizer_backend=None"  # a tokenizer is needed only to score given text
        arguments = ["--model", "local-chat-completions" if chat else "local-completions", "--model_args", model]
        arguments += ["--tasks", self.task, "--output_path", str(folder), "--log_samples", "--seed", str(subject.seed)]
        if chat:
            arguments.append("--apply_chat_template")
        if self.limit is not None:
            arguments += ["--limit", str(self.limit)]
        return arguments


def scores_prompts(subject: Subject) -> bool:
    """Return whether the server itself gives log-probabilities of given text."""
    return isinstance(subject.scorer(), PromptLogprobs | Echo)


def program() -> list[str]:
    """Return the command that runs lm-eval.

    Raises
    ------
    MeasurementError
        It is not installed.
    """
    found = shutil.which("lm_eval") or shutil.which("lm-eval")
    if found:
        return [found]
    if find_spec("lm_eval") is not None:
        return [sys.executable, "-m", "lm_eval"]
    raise MeasurementError("lm-eval is not installed: pip install 'lm-eval[api]'")


def read_results(folder: Path, task: str) -> tuple[tuple[Score, ...], tuple[Item, ...]]:
    """Read what lm-eval left in its output folder.

    Raises
    ------
    MeasurementError
        There are no results, or none of `task`.
    """
    files = sorted(folder.rglob("results_*.json"))
    if not files:
        raise MeasurementError("lm-eval left no results")
    try:
        stored = json.loads(files[-1].read_text(encoding="utf-8"))
        reported = stored["results"].get(task) or stored.get("groups", {}).get(task)
        if not reported:
            raise MeasurementError(f"lm-eval left no results of {task}; it has {', '.join(stored['results'])}")
        items = tuple(item for file in sorted(folder.rglob("samples_*.jsonl")) for item in _items(file))
    except (ValueError, KeyError, TypeError) as error:
        raise MeasurementError(f"lm-eval's results are not as expected ({type(error).__name__}: {error})") from None
    return tuple(_scores(reported, len(items))), items


def paired(score: Score, items: Sequence[Item], reference: TaskResult | None) -> Score:
    """Give a metric the intervals that its items allow.

    Where lm-eval's value is not the mean of its items (a corpus-level metric), its own standard error and no interval
    of the change remain.
    """
    own = _of_metric(score.metric, items)
    known = [item.score for item in own if item.score is not None]
    if known and score.score is not None and math.isclose(fmean(known), score.score, rel_tol=1e-6, abs_tol=1e-9):
        return item_score(score.metric, own, _of_metric(score.metric, reference.items) if reference else None)
    before = next((s.score for s in reference.scores if s.metric == score.metric), None) if reference else None
    if before is None or score.score is None:
        return score
    return replace(score, baseline_score=before, change=score.score - before)


def _items(file: Path) -> list[Item]:
    """Read one task's samples, one line an item and filter; the file is called ``samples_TASK_DATE.jsonl``."""
    task = file.stem.removeprefix("samples_").rpartition("_")[0]
    merged: dict[str, Item] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        key = f"{task}/{sample['doc_id']}"
        values = {_metric(name, sample["filter"]): sample.get(name) for name in sample["metrics"]}
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        known = dict(merged[key].detail["metrics"]) if key in merged else {}
        answer = json.dumps(sample.get("filtered_resps"))[:500]
        merged[key] = Item(key, None, answer, detail={"metrics": known | numbers})
    return [
        replace(item, score=next(iter(item.detail["metrics"].values()), None), error=None) for item in merged.values()
    ]


def _scores(reported: dict[str, Any], items: int) -> list[Score]:
    scores = []
    for key, value in reported.items():
        name, _, label = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float) or name.endswith("_stderr") or not label:
            continue
        error = reported.get(f"{name}_stderr,{label}")
        half = _STANDARD_ERRORS * error if isinstance(error, int | float) else None
        low, high = (value - half, value + half) if half is not None else (None, None)
        scores.append(Score(_metric(name, label), float(value), low, high, items))
    return scores


def _metric(name: str, label: str) -> str:
    return name if label == "none" else f"{name},{label}"


def _of_metric(metric: str, items: Sequence[Item]) -> list[Item]:
    return [replace(item, score=item.detail.get("metrics", {}).get(metric)) for item in items]


def _run(command: list[str], api_key: str | None, tick: Callable[[], None]) -> None:
    """Run a command to its end, calling `tick` now and then; what that raises ends the command."""
    env = {**os.environ, **({"OPENAI_API_KEY": api_key} if api_key else {})}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(  # noqa: S603 - a list of arguments
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            while (code := _ended(child)) is None:
                tick()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, 9)
                child.wait()
        if code:
            log.seek(0)
            lines = [line.strip() for line in log.read().splitlines() if line.strip()]
            raise MeasurementError(f"lm-eval ended with code {code}: {' / '.join(lines[-3:])[-500:]}")


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    """Wait a moment and return the exit code, or ``None`` while the child still runs."""
    try:
        return child.wait(_TICK_S)
    except subprocess.TimeoutExpired:
        return None
