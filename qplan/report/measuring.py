"""How one measurement looks: a bar on the terminal while it runs, and its figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qplan.core.units import format_duration
from qplan.measure.campaign.events import PointProgress
from qplan.report.output import print_json, print_table

if TYPE_CHECKING:
    from rich.progress import Progress

    from qplan.measure.campaign.events import Event, Result

JSON_SCHEMA_VERSION = 1

_LATENCIES = (
    ("ttft", "TTFT"),
    ("ttft_scheduled", "TTFT scheduled"),
    ("tpot", "TPOT"),
    ("itl", "ITL"),
    ("e2e", "E2E"),
)
_STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_BOUNDS = ("mean_low", "mean_high", "p90_low", "p90_high")
_PLACES = ("phase", "command", "measured_on", "provenance", "repeat")


class PointBar:
    """A progress bar on standard error, where that is a terminal."""

    def __init__(self, what: str) -> None:
        self._bar = _progress()
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def take(self, event: Event) -> None:
        """Show how far the point is."""
        if isinstance(event, PointProgress):
            self._bar.update(self._task, completed=event.count, total=event.of or None)


@contextmanager
def progress_bar(what: str, total: float) -> Iterator[Callable[[float], object]]:
    """Show a bar on standard error, where that is a terminal; yields what advances it."""
    with _progress() as bar:
        task = bar.add_task(what, total=total)
        yield lambda step: bar.advance(task, step)


@contextmanager
def count_bar(what: str) -> Iterator[Callable[[int, int], object]]:
    """Show a bar on standard error, where that is a terminal; yields what tells it how many are done, of how many."""
    with _progress() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def print_result(result: Result, *, as_json: bool) -> None:
    """Print what measuring a point gave."""
    rows = [{name: value for name, value in row.items() if value not in (None, "unknown")} for row in result.rows]
    if as_json:
        print_json(
            {
                "schema_version": JSON_SCHEMA_VERSION,
                "state": result.state,
                "reason": result.reason,
                "observations": rows,
            }
        )
        return
    for row in rows:
        times = [name for name, _ in _LATENCIES if f"{name}_mean_s" in row]
        in_table = {f"{name}_{part}_s" for name in times for part in (*_STATISTICS, *_BOUNDS)}
        shown = [name for name in row if name not in _PLACES and name not in in_table]
        print_table(("what", "value"), [(name, _shown(name, row[name])) for name in shown])
        if times:
            sys.stdout.write("\n")
            print_table(
                ("time", *_STATISTICS, "p90 (95% CI)"),
                [
                    (title, *(_time(row, f"{name}_{part}_s") for part in _STATISTICS), _interval(row, name))
                    for name, title in _LATENCIES
                    if name in times
                ],
            )


def _time(row: Mapping[str, Any], column: str) -> str:
    return format_duration(row[column]) if column in row else ""


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = (_time(row, f"{name}_p90_{end}_s") for end in ("low", "high"))
    return f"{low} to {high}" if low and high else ""


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return format_duration(value) if name.endswith("_s") and "_per_" not in name else f"{value:.5g}"
    return str(value)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
