"""A campaign from plan to observations: what is open is placed, measured and journaled, until nothing is open.

::

    plan ─► grid ─► journal: what is open ─► jobs ─► workers ─► events ─► journal, display

This process is the store's one writer, wherever the jobs run. It may die at any moment: run again, the campaign goes on
with what is open, and an engine that was left behind is ended by its supervisor.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.campaign.block import Job
from qplan.measure.campaign.estimate import Estimate
from qplan.measure.campaign.events import (
    BlockEnded,
    CampaignEnded,
    CampaignStarted,
    Emit,
    Event,
    PointFinished,
    PointPutBack,
    PointRetried,
    PointStarted,
    ProbeFinished,
    Result,
    Stopping,
)
from qplan.measure.campaign.grid import Block, Grid, baseline_of, make_grid
from qplan.measure.campaign.placement import InProcess, SideBySide, Workers
from qplan.measure.campaign.points import QUALITY, SATURATION, Point, Target
from qplan.measure.campaign.rows import failure_row
from qplan.measure.engines import open_engine
from qplan.profiles.journal import CLOSED_STATES, OPEN_STATES, Journal, Standing

if TYPE_CHECKING:
    from qplan.measure.campaign.plan import CampaignPlan
    from qplan.profiles.store import ProfileStore

_POLL_S = 0.2


def run_campaign(
    plan: CampaignPlan,
    text: str,
    store: ProfileStore,
    *,
    emit: Emit,
    stopping: Stopping,
    cache: Path | None = None,
    ray_address: str | None = None,
    retry_failed: bool = False,
    limit_s: float | None = None,
) -> CampaignEnded:
    """Measure what is open of a campaign; return how it ended.

    Parameters
    ----------
    plan, text
        The plan, and the text it was read from.
    store
        Where observations and journal are kept.
    emit
        Gets every event, in this thread, after it is in the journal.
    stopping
        Asked often; once it says true, points at hand are put back and engines are stopped.
    cache
        Folder of quantized weights and engine logs; by default the user's cache folder.
    ray_address
        Ray cluster whose GPUs measure, instead of this machine's.
    retry_failed
        Whether points that failed or were invalid are tried again.
    limit_s
        Time after which this part of the campaign is over: what is not expected to end before is not begun, and what
        is at hand then is put back. ``None``: until nothing is open.

    Raises
    ------
    InputError
        No combination of the plan can be measured.
    MeasurementError
        An engine of the plan is not installed.
    StoreError
        The store cannot be written, or another process measures this campaign.
    """
    end_s = None if limit_s is None else time.time() + limit_s
    grid = _grid_of(plan)
    if ray_address is None:
        for engine in dict.fromkeys(block.target.engine for block in grid.blocks):
            open_engine(engine).version()
    with Journal(store, plan.name) as journal:
        journal.open(text, {point.key: point.to_json for point in grid.points})
        if retry_failed:
            journal.reopen(("failed", "invalid"))
        over = stopping if end_s is None else _or_after(stopping, end_s)
        campaign = _Campaign(plan, grid, journal, cache or cache_folder(), emit, over, end_s)
        workers = _workers(plan, campaign.take, over, ray_address)
        try:
            return campaign.run(workers)
        finally:
            workers.close()


def preview(plan: CampaignPlan, store: ProfileStore) -> tuple[Grid, dict[str, str], float]:
    """Return what :func:`run_campaign` would do: the grid, the state of points that the store knows, and the time.

    Nothing is started and nothing is written.
    """
    grid = _grid_of(plan)
    standings = Journal(store, plan.name).standings()
    states = {point.key: standings[point.key].state for point in grid.points if point.key in standings}
    is_open = {point.key: states.get(point.key, "pending") in OPEN_STATES for point in grid.points}
    return grid, states, _estimate(plan, grid, standings).total_s(grid.blocks, is_open)


def cache_folder() -> Path:
    """Return the user's cache folder of qplan."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qplan"


def _grid_of(plan: CampaignPlan) -> Grid:
    grid = make_grid(plan)
    if not grid.points:
        first = f"; the first: {grid.refused[0].what}: {grid.refused[0].reason}" if grid.refused else ""
        raise InputError(f"plan '{plan.name}': none of its combinations can be measured{first}")
    return grid


def _estimate(plan: CampaignPlan, grid: Grid, standings: Mapping[str, Standing]) -> Estimate:
    """Return expected times, from those points of the grid that took a known time."""
    known = ((point, standings[point.key].seconds) for point in grid.points if point.key in standings)
    return Estimate(plan, [(point, seconds) for point, seconds in known if seconds])


def _or_after(stopping: Stopping, end_s: float) -> Stopping:
    """Stop when asked to, or when the system's clock says `end_s`."""
    return lambda: stopping() or time.time() >= end_s


def _workers(plan: CampaignPlan, emit: Emit, stopping: Stopping, ray_address: str | None) -> Workers:
    if ray_address is not None:
        from qplan.measure.campaign.ray import OnRay

        return OnRay(ray_address, emit, stopping)
    if len(plan.devices) > min(plan.tp):
        return SideBySide(plan.devices, emit, stopping)
    return InProcess(plan.devices, emit, stopping)


class _Campaign:
    """The state of a campaign that runs, all of it in the journal as well."""

    def __init__(
        self,
        plan: CampaignPlan,
        grid: Grid,
        journal: Journal,
        cache: Path,
        emit: Emit,
        stopping: Stopping,
        end_s: float | None,
    ) -> None:
        self.plan = plan
        self.grid = grid
        self.journal = journal
        self._cache = cache
        self._emit = emit
        self._stopping = stopping
        self._end_s = end_s
        self._points = {point.key: point for point in grid.points}
        standings = journal.standings()
        self._states = {key: standings[key].state for key in self._points}
        self._tried = {key: standings[key].attempts for key in self._points if self._states[key] in OPEN_STATES}
        self._estimate = _estimate(plan, grid, standings)
        self._attempts: dict[str, int] = {}  # number of the attempt under way, by key
        self._jobs: dict[int, Job] = {}
        self._waiting = [n for n, block in enumerate(grid.blocks) if self._open_points(block)]

    def run(self, workers: Workers) -> CampaignEnded:
        """Place blocks until none is left."""
        is_open = {key: state in OPEN_STATES for key, state in self._states.items()}
        estimate_s = self._estimate.total_s(self.grid.blocks, is_open)
        self._emit(
            CampaignStarted(
                self.plan.name, len(self._points), sum(is_open.values()), len(self.grid.refused), estimate_s
            )
        )
        while self._jobs or (self._waiting and not self._stopping()):
            ready = None if self._stopping() else self._next(workers)
            if ready is None and not self._jobs and self._end_s is not None:
                break  # nothing fits into the time that is left
            if ready is None:
                workers.poll(_POLL_S)
                continue
            self._waiting.remove(ready)
            self._jobs[ready] = self._job(ready)
            workers.submit(self._jobs[ready])
        counts = {state: list(self._states.values()).count(state) for state in CLOSED_STATES}
        left = len(self._points) - sum(counts.values())
        stopped = left > 0 and (self._stopping() or self._end_s is not None)
        ended = CampaignEnded(counts["done"], counts["failed"], counts["invalid"], left, stopped)
        self._emit(ended)
        return ended

    def take(self, event: Event) -> None:
        """Write an event to the journal, then hand it on."""
        if isinstance(event, PointStarted):
            self._attempts[event.key] = self.journal.start(event.key)
        elif isinstance(event, ProbeFinished):
            self.journal.add_probe(event.key, event.result, event.raw)
        elif isinstance(event, PointRetried):
            self._tried[event.key] = self._tried.get(event.key, 0) + 1
            attempt = self._attempts.pop(event.key)
            self.journal.retry(event.key, attempt, reason=event.reason, last_lines=event.last_lines)
        elif isinstance(event, PointPutBack):
            self.journal.put_back(event.key, self._attempts.pop(event.key))
        elif isinstance(event, PointFinished):
            self._close(event.key, event.result)
        elif isinstance(event, BlockEnded):
            self._end_block(event)
        self._emit(event)

    def _close(self, key: str, result: Result) -> None:
        attempt = self._attempts.pop(key) if key in self._attempts else self.journal.start(key)
        self.journal.finish(
            key,
            attempt,
            state=result.state,
            rows=result.rows,
            reason=result.reason,
            raw=result.raw,
            metrics=result.metrics,
            last_lines=result.last_lines,
            seconds=result.seconds,
        )
        self._states[key] = result.state

    def _end_block(self, event: BlockEnded) -> None:
        """Let go of a block; where its worker died, try what it was at again, or record that failure and go on."""
        job = self._jobs.pop(event.block)
        for point in job.points:
            if point.key not in self._attempts:
                continue
            reason = event.error or "the measuring process ended without a result"
            if self._stopping():
                self.take(PointPutBack(point.key, str(point)))
            elif self._tried.get(point.key, 0) < self.plan.retries:
                self.take(PointRetried(point.key, str(point), reason, (), 0.0))
            else:
                row = failure_row(point, job, "unknown", "failed", reason)
                self.take(PointFinished(point.key, str(point), Result("failed", rows=(row,), reason=reason)))
        if self._open_points(self.grid.blocks[event.block]) and not self._stopping():
            if event.error is not None and all(point.key not in self._tried for point in job.points):
                raise MeasurementError(event.error)  # no point had begun: it would begin, and die, for ever
            self._waiting.insert(0, event.block)

    def _next(self, workers: Workers) -> int | None:
        """Return the first waiting block that can begin now."""
        unfinished = {*self._waiting, *self._jobs}
        for number in self._waiting:
            block = self.grid.blocks[number]
            ready = not unfinished.intersection(block.after) and workers.room(block.target.tp)
            if ready and self._has_time_for(block):
                return number
        return None

    def _has_time_for(self, block: Block) -> bool:
        """Whether an engine would start and measure its first point in the time that is left."""
        if self._end_s is None:
            return True
        first_s = self._estimate.start_s(block.target) + self._estimate.point_s(self._open_points(block)[0])
        return time.time() + first_s <= self._end_s

    def _job(self, number: int) -> Job:
        block = self.grid.blocks[number]
        points = self._open_points(block)
        return Job(
            number=number,
            target=block.target,
            points=points,
            devices=(),
            folder=str(self._cache / "runs" / re.sub(r"[^\w.-]+", "-", self.plan.name)),
            cache=str(self._cache / "weights"),
            source=f"campaign {self.plan.name}",
            energy=self.plan.energy,
            phase_energy=self.plan.phase_energy,
            retries=self.plan.retries,
            processes=self.plan.processes,
            deadlines=self.plan.deadlines,
            tried={point.key: self._tried.get(point.key, 0) for point in points},
            saturation_qps=self._saturation_of(block.target),
            probes={p.key: self.journal.probes(p.key) for p in points if p.kind == SATURATION},
            baselines=self._baselines_of(block.target) if any(p.kind == QUALITY for p in points) else {},
            end_s=self._end_s,
            expected_s={point.key: self._estimate.point_s(point) for point in points},
        )

    def _open_points(self, block: Block) -> tuple[Point, ...]:
        return tuple(point for point in block.points if self._states[point.key] in OPEN_STATES)

    def _saturation_of(self, target: Target) -> dict[str, float]:
        """Return the saturation rates that shares refer to: those of the first repeat that found one."""
        found: dict[str, float] = {}
        for point in self._points.values():
            if point.target == target and point.kind == SATURATION and point.workload not in found:
                metrics = self.journal.metrics(point.key) if self._states[point.key] == "done" else None
                if metrics is not None and metrics.get("saturation_qps"):
                    found[point.workload] = float(metrics["saturation_qps"])
        return found

    def _baselines_of(self, target: Target) -> dict[str, Mapping[str, Any]]:
        """Return the results of the unquantized deployment, by quality task."""
        baseline = baseline_of(target, [block.target for block in self.grid.blocks])
        if baseline is None or baseline == target:
            return {}
        found: dict[str, Mapping[str, Any]] = {}
        for point in self._points.values():
            if point.target == baseline and point.kind == QUALITY and self._states[point.key] == "done":
                found[point.task] = self.journal.metrics(point.key) or {}
        return found
