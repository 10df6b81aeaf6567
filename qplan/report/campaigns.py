"""How a campaign looks while it runs, how its grid looks before, and how its events read as JSON."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qplan.measure.campaign.events import (
    BlockEnded,
    CampaignEnded,
    CampaignStarted,
    EngineReady,
    EngineStarting,
    EngineStopped,
    Event,
    PointFinished,
    PointProgress,
    PointPutBack,
    PointRetried,
    PointStarted,
    ProbeFinished,
)
from qplan.report.output import EventLog, print_json, print_table

if TYPE_CHECKING:
    from rich.console import Group

    from qplan.measure.campaign.grid import Grid

JSON_SCHEMA_VERSION = 1

_LAST_EVENTS = 8


def print_grid(grid: Grid, states: dict[str, str], estimate_s: float, *, as_json: bool) -> None:
    """Print what a campaign would measure, what it would not and why, and how long it would take.

    Parameters
    ----------
    states
        State of the points that the store knows, by key.
    estimate_s
        Expected time of what is open.
    """
    points = [(number, point) for number, block in enumerate(grid.blocks) for point in block.points]
    if as_json:
        print_json(
            {
                "schema_version": JSON_SCHEMA_VERSION,
                "points": [
                    {"key": point.key, "block": number, "state": states.get(point.key, "pending")} | point.to_json()
                    for number, point in points
                ],
                "refused": [asdict(refused) for refused in grid.refused],
                "estimate_s": estimate_s,
            }
        )
        return
    print_table(
        ("engine start", "point", "state"),
        [(number + 1, str(point), states.get(point.key, "to do")) for number, point in points],
    )
    for refused in grid.refused:
        print_line(f"not measured: {refused.what}: {refused.reason}")
    to_do = sum(states.get(point.key, "pending") in ("pending", "running") for _, point in points)
    starts = f"{len(grid.blocks)} engine start{'' if len(grid.blocks) == 1 else 's'}"
    refused_count = f"{len(grid.refused)} combination{'' if len(grid.refused) == 1 else 's'} not measured"
    print_line(f"{len(points)} points in {starts}, {to_do} to do, {refused_count}; about {clock(estimate_s)}")


def print_line(text: str) -> None:
    """Print a line of plain text."""
    sys.stdout.write(text + "\n")


def clock(seconds: float) -> str:
    """Print a long time as a person reads it: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class JsonLog(EventLog):
    """Writes each event as a line of JSON; the progress inside a point is left out."""

    def take(self, event: Event) -> None:
        """Write an event."""
        if isinstance(event, PointProgress):
            return
        fields = asdict(event)
        fields.pop("raw", None)
        if isinstance(event, PointFinished):
            fields["result"] = {name: fields["result"][name] for name in ("state", "reason", "rows", "seconds")}
        self.write(event, fields)


class CampaignDisplay:
    """Shows a campaign on standard error: live on a terminal, where failures and the end stay, else in lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live = (
            Live(console=self._console, refresh_per_second=4, transient=True) if self._console.is_terminal else None
        )
        self._began = time.perf_counter()
        self._total = self._open = self._closed = 0
        self._failed: list[str] = []
        self._estimate_s = 0.0
        self._running: dict[str, str] = {}
        self._progress: dict[str, str] = {}
        self._engines: dict[int, str] = {}
        self._last: deque[str] = deque(maxlen=_LAST_EVENTS)
        self._lasting: list[str] = []

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            for line in self._lasting:
                self._console.print(line, markup=False, soft_wrap=True)

    def take(self, event: Event) -> None:
        """Show an event."""
        self._note(event)
        line = describe(event)
        if line is not None and self._live is None:
            self._console.print(f"[{clock(time.perf_counter() - self._began)}] {line}", markup=False, soft_wrap=True)
        elif line is not None:
            self._last.append(line)
            if isinstance(event, CampaignEnded) or (isinstance(event, PointFinished) and event.result.state != "done"):
                self._lasting.append(line)
        if self._live is not None:
            self._live.update(self._picture())

    def _note(self, event: Event) -> None:
        """Keep what the picture shows."""
        match event:
            case CampaignStarted():
                self._total, self._open, self._estimate_s = event.points, event.open_points, event.estimate_s
            case EngineStarting():
                self._engines[event.block] = f"starting {event.target}"
            case EngineReady():
                self._engines[event.block] = f"{event.target} ({event.version})"
            case EngineStopped() | BlockEnded():
                self._engines.pop(event.block, None)
            case PointStarted():
                self._running[event.key] = event.point
            case PointProgress():
                of = f"/{event.of}" if event.of else ""
                self._progress[event.key] = f"{event.count}{of} {event.note}".strip()
            case PointFinished() | PointPutBack() | PointRetried():
                self._running.pop(event.key, None)
                self._progress.pop(event.key, None)
        if isinstance(event, PointFinished):
            self._closed += 1
            if event.result.state != "done":
                self._failed.append(event.point)

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        taken_s = time.perf_counter() - self._began
        left_s = max(self._estimate_s * (1 - self._closed / max(self._open, 1)), 0.0)
        if self._closed:
            left_s = (left_s + taken_s / self._closed * (self._open - self._closed)) / 2
        done = self._total - self._open + self._closed
        times = f"{clock(taken_s)} gone, about {clock(left_s)} left"
        head = f"{done}/{self._total} points, {len(self._failed)} failed, {times}"
        lines = [Text(head, style="bold")]
        lines += [Text(f"engine  {engine}", style="cyan") for engine in self._engines.values()]
        lines += [Text(f"now     {point}  {self._progress.get(key, '')}") for key, point in self._running.items()]
        lines += [Text(f"failed  {point}", style="red") for point in self._failed[-3:]]
        lines += [Text(f"        {line}", style="dim") for line in self._last]
        return Group(ProgressBar(total=max(self._total, 1), completed=done), *lines)


def describe(event: Event) -> str | None:
    """Say in one line what happened; ``None`` for what is not worth a line."""
    match event:
        case CampaignStarted():
            return (
                f"campaign {event.name}: {event.points} points, {event.open_points} to do, "
                f"{event.refused} combinations not measured, about {clock(event.estimate_s)}"
            )
        case EngineStarting():
            gpus = f" on GPU {','.join(map(str, event.devices))}" if event.devices else ""
            return f"starting {event.target}{gpus}"
        case EngineReady():
            return f"{event.target} {event.version} is ready after {event.seconds:.1f} s"
        case PointStarted():
            return f"measuring {event.point}"
        case ProbeFinished():
            return f"probe at {event.result.get('rate_qps', 0):.3g} qps is over"
        case PointRetried():
            return f"failed, again in {event.wait_s:g} s: {event.point}: {event.reason}"
        case PointFinished():
            how = "done" if event.result.state == "done" else f"{event.result.state}: {event.result.reason}"
            return f"{event.point}: {how} ({clock(event.result.seconds)}){_figures(event)}"
        case PointPutBack():
            return f"stopped: {event.point}"
        case BlockEnded() if event.error:
            return event.error
        case CampaignEnded():
            verb = "stopped" if event.stopped else "ended"
            return f"{verb}: {event.done} done, {event.failed} failed, {event.invalid} invalid, {event.left} left"
    return None


def _figures(event: PointFinished) -> str:
    """Return the figures of a point that one wants to see at once."""
    if event.result.state != "done" or not event.result.rows:
        return ""
    row = event.result.rows[0]
    shown = (
        ("saturation_qps", "saturation {:.3g} qps"),
        ("ttft_p90_s", "p90 TTFT {:.3g} s"),
        ("tpot_p90_s", "p90 TPOT {:.3g} s"),
        ("achieved_qps", "{:.3g} qps"),
        ("score", "score {:.4g}"),
    )
    figures = [text.format(row[name]) for name, text in shown if row.get(name) is not None]
    return f": {', '.join(figures)}" if figures else ""
