"""Quality tasks by name: ``FAMILY:ITEMS``, where ``[:N]`` behind the name takes the first N items.

Any installed package can bring a family: it names a callable ``(name, limit, where) -> Task`` as an entry point of the
group ``qplan.quality_tasks``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from qplan.core.errors import InputError, nearest
from qplan.measure.quality.results import TaskResult

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from qplan.measure.quality.subject import Subject

ENTRY_POINT_GROUP = "qplan.quality_tasks"

TASKS = (
    "perplexity:english",
    "choice:sample",
    "instructions:sample",
    "math:sample",
    "summaries:sample",
    "humaneval",
)
"""Tasks that run offline, from what ships or what the extra ``humaneval`` installs."""

_LIMIT = re.compile(r"\[:(\d+)\]$")


class Task(Protocol):
    """Something that quality is judged on."""

    @property
    def name(self) -> str:
        """Name in results and observations."""

    @property
    def dimension(self) -> str:
        """``knowledge`` or ``alignment``."""

    def run(self, subject: Subject, baseline: Sequence[TaskResult]) -> TaskResult:
        """Judge `subject`, paired with the result that `baseline` has of this task.

        What can be measured only in part is a result with scores of ``None`` and a reason.

        Raises
        ------
        MeasurementError
            Nothing could be measured.
        InputError
            The items are not what they should be, or the baseline was judged by another method.
        """


Open = Callable[[str, int | None, str], Task]


def open_task(name: str, where: str = "task") -> Task:
    """Return the task called `name`; `where` names the flag or file and line in an error.

    Opening reads no items: that is done when the task runs.

    Raises
    ------
    InputError
        There is no such task.
    """
    text = name.strip()
    limited = _LIMIT.search(text)
    limit = int(limited.group(1)) if limited else None
    if limit == 0:
        raise InputError(f"{where}: '{name}' takes no items")
    family, _, items = text[: limited.start() if limited else len(text)].partition(":")
    opens = _families()
    if family not in opens:
        choices = [*TASKS, "lm-eval:NAME", *(f"{brought}:..." for brought in opens if brought not in _SHIPPED)]
        raise InputError(f"{where}: unknown quality task '{name}'; expected one of {', '.join(choices)}"
                         f"{nearest(name, choices)}")  # fmt: skip
    return opens[family](items, limit, where)


def _perplexity(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.perplexity import Perplexity
    from qplan.measure.quality.sources import find_items

    return Perplexity(_named("perplexity", items, limit), find_items("perplexity", items, limit, where))


def _choice(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.choice import Choice
    from qplan.measure.quality.dimensions import dimension_of
    from qplan.measure.quality.sources import find_items

    name = _named("choice", items, limit)
    return Choice(name, find_items("choice", items, limit, where), dimension_of(name))


def _math(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.generation import math_task
    from qplan.measure.quality.sources import find_items

    return math_task(_named("math", items, limit), find_items("math", items, limit, where))


def _instructions(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.generation import instruction_task
    from qplan.measure.quality.sources import find_items

    return instruction_task(_named("instructions", items, limit), find_items("instructions", items, limit, where))


def _summaries(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.generation import summary_task
    from qplan.measure.quality.sources import find_items

    return summary_task(_named("summaries", items, limit), find_items("summaries", items, limit, where))


def _humaneval(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.humaneval import HumanEval

    if items:
        raise InputError(f"{where}: humaneval has one set of problems; write 'humaneval' or 'humaneval[:20]'")
    return HumanEval(_named("humaneval", "", limit), limit=limit)


def _lm_eval(items: str, limit: int | None, where: str) -> Task:
    from qplan.measure.quality.dimensions import dimension_of
    from qplan.measure.quality.lm_eval import LmEval

    if not re.fullmatch(r"[\w.-]+", items):
        raise InputError(f"{where}: 'lm-eval:{items}' names no task; write 'lm-eval:arc_easy'")
    name = _named("lm-eval", items, limit)
    return LmEval(name, items, limit, dimension_of(name))


_SHIPPED: dict[str, Open] = {
    "perplexity": _perplexity,
    "choice": _choice,
    "instructions": _instructions,
    "math": _math,
    "summaries": _summaries,
    "humaneval": _humaneval,
    "lm-eval": _lm_eval,
}


def _families() -> dict[str, Open]:
    from importlib.metadata import entry_points

    return {**{point.name: _brought(point) for point in entry_points(group=ENTRY_POINT_GROUP)}, **_SHIPPED}


def _brought(point: EntryPoint) -> Open:
    """Load a family of another package only when it is asked for."""

    def opens(items: str, limit: int | None, where: str) -> Task:
        found: Open = point.load()
        return found(items, limit, where)

    return opens


def _named(family: str, items: str, limit: int | None) -> str:
    return family + (f":{items}" if items else "") + (f"[:{limit}]" if limit else "")
