"""How a study looks: live while it runs, as a report, and as JSON."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from qplan.core.units import format_bytes, format_duration
from qplan.report.campaigns import clock
from qplan.report.output import EventLog, console, facts_table, plain_table, print_json, print_table
from qplan.solvers.tuning.events import Began, Died, Ended, Event, Progressed, Stopped, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group

    from qplan.measure.campaign.points import Target
    from qplan.solvers.tuning.space import Enumerated
    from qplan.solvers.tuning.summary import Found, Summary
    from qplan.solvers.tuning.tunefile import Tuning

JSON_SCHEMA_VERSION = 1

_SHOWN_ROWS = 20
_LAST_LINES = 4


class JsonLog(EventLog):
    """Writes each event as a line of JSON, and the front as the last; progress inside a measurement is left out."""

    def __init__(self, summary: Callable[[], Summary], stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._summary = summary

    def take(self, event: Event) -> None:
        """Write an event."""
        if isinstance(event, Progressed | Waiting):
            return
        fields = asdict(event)
        if isinstance(event, Stopped):
            summary = self._summary()
            fields |= {"front": [asdict(one) for one in summary.front], "outlook": summary.outlook}
        self.write(event, fields)


class TuningDisplay:
    """Shows the front while it grows: live on a terminal, else a line for each measurement; all on standard error."""

    def __init__(self, summary: Callable[[], Summary], candidates: int, budget: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._summary = summary
        self._of = f"{candidates} configurations, budget {budget}"
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._began = time.perf_counter()
        self._now: dict[int, str] = {}
        self._last: list[str] = []
        self._known = summary()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def take(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Began():
                again = " (again: its worker died)" if event.again else ""
                self._now[event.trial] = f"{event.configuration}{again}"
            case Progressed():
                self._now[event.trial] = f"{self._now.get(event.trial, '').partition('  ')[0]}  {event.note}"
            case Ended():
                self._now.pop(event.trial, None)
                self._known = self._summary()
                self._say(_ended(event, self._known))
            case Died():
                self._now.clear()  # those that live tell of themselves again
                self._say(f"a worker died, and is replaced: {event.reason}")
            case Stopped():
                self._say(event.reason)
            case Waiting():
                self._now = {-1: f"waiting for {event.others} other measurement{'s' if event.others > 1 else ''}"}
        if self._console.is_terminal:
            self._live.update(self._picture())

    def _say(self, line: str) -> None:
        if self._console.is_terminal:
            self._last = [*self._last, line][-_LAST_LINES:]
        else:
            taken = clock(time.perf_counter() - self._began)
            self._console.print(f"[{taken}] {line}", markup=False, soft_wrap=True)

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        known = self._known
        done = sum(one.how in ("front", "dominated", "over a limit") for one in known.found)
        head = f"{known.study}: {done} measured of {self._of}; {clock(time.perf_counter() - self._began)}"
        lines = [Text(head, style="bold")]
        lines += [Text(f"now  {what}", style="cyan") for what in self._now.values()]
        lines += [Text(f"     {line}", style="dim") for line in self._last]
        lines.append(Text(f"front: {len(known.front)} configurations", style="bold"))
        if not known.front:
            return Group(*lines)
        header, rows = front_table(known)
        return Group(*lines, plain_table(header, rows[:_SHOWN_ROWS]))


def print_space(tuning: Tuning, enumerated: Enumerated, *, as_json: bool) -> None:
    """Print what a study could measure, and what it could not and why."""
    if as_json:
        print_json(
            {
                "schema_version": JSON_SCHEMA_VERSION,
                "study": tuning.name,
                "objectives": [
                    {"name": one.name, "unit": one.unit, "direction": one.axis.direction} for one in tuning.objectives
                ],
                "configurations": [
                    {"configuration": str(one), "parameters": dict(one.parameters)} for one in enumerated.configurations
                ],
                "refused": [asdict(refused) for refused in enumerated.refused],
                "budget": str(tuning.budget),
            }
        )
        return
    print_table(("configuration", "GPUs"), [(str(one), one.gpus) for one in enumerated.configurations])
    for refused in enumerated.refused:
        sys.stdout.write(f"left out: {refused.what}: {refused.reason}\n")
    objectives = ", ".join(f"{one.axis.direction} {one.name}" for one in tuning.objectives)
    sys.stdout.write(
        f"{len(enumerated.configurations)} configurations, {len(enumerated.refused)} combinations left out; "
        f"{objectives}; budget {tuning.budget}\n"
    )


def print_study(summary: Summary, *, as_json: bool) -> None:
    """Print a study: the front, what it was found with, what mattered, and what was not measured."""
    if as_json:
        print_json(summary.to_json())
        return
    from rich.markup import escape

    print_front(summary)
    facts = facts_table()
    for name, text in facts_of(summary):
        facts.add_row(escape(name), escape(text))
    console().print(facts)
    for one in summary.found:
        if one.how in ("abandoned", "cannot run"):
            sys.stdout.write(f"{one.how}: {one.configuration}: {one.reason}\n")
        elif one.bounds:
            sys.stdout.write(f"a bound, which counts as the value: {one.configuration}: {one.reason}\n")
    for name, probability in summary.skipped:
        sys.stdout.write(f"not measured: {name}: on the front with probability {probability:.2g}\n")
    for what, reason in summary.refused:
        sys.stdout.write(f"left out: {what}: {reason}\n")


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """Return what is said of the whole study, each with its name."""
    counts = {how: sum(one.how == how for one in summary.found) for how in dict.fromkeys(o.how for o in summary.found)}
    facts = [("trials", ", ".join(f"{count} {how}" for how, count in counts.items()) or "none")]
    enough = next((n + 1 for n, share in enumerate(summary.hypervolume) if share >= 0.95), None)
    if enough is not None:
        facts.append(("hypervolume", f"95 % of what was found by measurement {enough} of {len(summary.hypervolume)}"))
    hours = sum(one.gpu_hours or 0.0 for one in summary.found)
    facts.append(("cost", f"{hours:.3g} GPU-hours; {summary.source}"))
    for name, shares in summary.importance.items():
        told = shares if isinstance(shares, str) else ", ".join(f"{p} {share:.0%}" for p, share in shares.items())
        facts.append((f"what moves {name}", told))
    if summary.outlook is not None:
        facts.append(("left on the table", outlook_line(summary)))
    return facts


def print_front(summary: Summary) -> None:
    """Print the front as a table, the best by the first objective first."""
    if summary.front:
        print_table(*front_table(summary))
    else:
        sys.stdout.write(f"{summary.study}: nothing on the front yet\n")


def front_table(summary: Summary) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return header and rows of the front, the best by the first objective first."""
    names = list(summary.units)
    ordered = sorted(
        summary.front,
        key=lambda one: one.values.get(names[0], 0.0),
        reverse=summary.directions[names[0]] == "maximize",
    )
    rows = [(one.trial, one.configuration, *(value_of(one, n, summary) for n in names)) for one in ordered]
    return ("trial", "configuration", *names), rows


def print_choice(one: Found, target: Target, summary: Summary) -> None:
    """Print a configuration, and how to go on with it."""
    facts = facts_table()
    facts.add_row("configuration", one.configuration)
    facts.add_row("serves", str(target))
    for name in summary.units:
        facts.add_row(name, value_of(one, name, summary))
    console().print(facts)
    sys.stdout.write("--launch FILE writes the script that serves it; --qps RATE sizes a fleet of it\n")


def outlook_line(summary: Summary) -> str:
    """Say what the rest would add."""
    outlook = summary.outlook
    assert outlook is not None
    return (
        f"expected {outlook['left']:.2%} of the front's hypervolume, at most {outlook['left_upper']:.2%} with 90 % "
        f"confidence; {outlook['remaining']:.0f} configurations are worth a measurement"
    )


def shown(value: float | None, unit: str) -> str:
    """Print a value with its unit."""
    if value is None:
        return "-"
    if unit == "bytes":
        return format_bytes(value)
    if unit == "s":
        return format_duration(value)
    return f"{value:.4g} {unit}".rstrip()


def value_of(one: Found, name: str, summary: Summary) -> str:
    """Print an objective of a configuration with its unit; of a bound, on which side the value lies."""
    unit, more = summary.units[name], summary.directions[name] == "maximize"
    if name in one.bounds:
        return f"at {'least' if more else 'most'} {shown(one.values[name], unit)}"
    if name in one.at_best and name not in one.values:
        return f"at {'most' if more else 'least'} {shown(one.at_best[name], unit)}"
    return shown(one.values.get(name), unit)


def _values(one: Found, summary: Summary) -> str:
    return ", ".join(f"{name} {value_of(one, name, summary)}" for name in summary.units)


def _ended(event: Ended, summary: Summary) -> str:
    """Say in one line how a trial ended."""
    if event.how != "measured":
        return f"{event.configuration}: {event.how}" + (f": {event.reason}" if event.reason else "")
    found = next(one for one in summary.found if one.trial == event.trial)
    return f"{event.configuration}: {_values(found, summary)} ({found.how}; {len(summary.front)} on the front)"
