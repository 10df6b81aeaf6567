"""Measuring one point with a rig: a load, a saturation search, or a quality task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.measure.campaign.block import Stopped
from qplan.measure.campaign.events import PointProgress, ProbeFinished, Result
from qplan.measure.campaign.phases import steady_run, tell_apart
from qplan.measure.campaign.points import LOAD, QUALITY, SATURATION, Point
from qplan.measure.campaign.rows import point_columns, share_of
from qplan.measure.campaign.traffic import mean_lengths, prompts, schedule_and_prompts
from qplan.measure.campaign.watch import Watch
from qplan.measure.energy.per_token import observation_columns as energy_columns

if TYPE_CHECKING:
    from qplan.measure.campaign.rig import Rig
    from qplan.measure.load.prompts import Prompt
    from qplan.measure.load.requests import Floats, Request, Requests
    from qplan.measure.saturation.probe import Probe, ProbeResult

_PROGRESS_S = 0.5
_PROBE_PROMPTS = 2000  # of a search, sent in turn
_STATES = {"ok": "done", "failed": "failed", "oom": "failed", "invalid": "invalid"}


def measure_point(point: Point, rig: Rig) -> Result:
    """Measure a point.

    Raises
    ------
    MeasurementError
        The server died, or nothing could be measured; the caller tries again.
    Stopped
        The user asked for an end.
    """
    began = time.perf_counter()
    result = _HOW[point.kind](point, rig)
    return replace(result, seconds=time.perf_counter() - began)


class _Follower:
    """Follows a run: counts for the display, and ends it when there is nothing left to measure."""

    def __init__(self, point: Point, rig: Rig, watch: Watch, of: int, what: str) -> None:
        self._key, self._rig, self._watch, self._of, self._what = point.key, rig, watch, of, what
        self._count = self._failed = 0
        self._told = 0.0

    def finished(self, request: Request) -> None:
        self._count += 1
        self._failed += bool(request.reason)
        now = time.perf_counter()
        if now - self._told >= _PROGRESS_S or self._count == self._of:
            self._told = now
            note = f"{self._what} {self._failed} failed" if self._failed else self._what
            self._rig.emit(PointProgress(self._key, self._count, self._of, note))

    def stop(self) -> bool:
        return self._watch.halted()


def _measure_load(point: Point, rig: Rig) -> Result:
    """Offer a load and take its observation over the steady part."""
    from qplan.measure.load.encoding import encode_requests
    from qplan.measure.load.metrics import observation_columns

    rate = _rate(point, rig)
    schedule_s, asked = schedule_and_prompts(point, rig, rate)
    requests, watch = _offer(point, rig, schedule_s, asked)
    run = steady_run(rig, requests, point.warm_up_s)
    row = point_columns(point, rig.job.source, rate if rate is not None else _mean_rate(schedule_s)) | rig.columns
    row |= observation_columns(requests, window=run.window, slos=Slo.parse_all([point.slo]) if point.slo else ())
    row |= mean_lengths(point.source, asked)
    row |= watch.columns(run.energy.start_s, run.energy.end_s)
    phases = None
    if row["status"] == "ok" and rig.job.phase_energy:
        phases = tell_apart(point, rig, rate, run, lambda *sent: _offer(point, rig, *sent, what="prefill alone")[0])
    row |= energy_columns(run.energy, idle_power_w=rig.idle_power_w, phases=phases)
    return Result(
        _STATES[row["status"]],
        (row,),
        reason=row["reason"],
        raw=encode_requests(requests),
        metrics={"window_s": [run.window.start_s, run.window.end_s]},
        final=row["requests"] == 0,  # the schedule of another attempt is the same
    )


def _offer(
    point: Point, rig: Rig, schedule_s: Floats, asked: Sequence[Prompt], *, what: str = ""
) -> tuple[Requests, Watch]:
    """Send prompts on a schedule while the server is watched; `what` tells the display what this is."""
    from qplan.measure.load.run import run_load

    with Watch(rig.server, rig.stopping) as watch:
        requests = run_load(
            rig.server.endpoint,
            schedule_s,
            asked,
            timeout_s=rig.job.deadlines.request_s,
            processes=rig.job.processes,
            observer=_Follower(point, rig, watch, len(schedule_s), what),
        )
    if rig.stopping():
        raise Stopped
    watch.raise_if_dead()
    return requests, watch


def _rate(point: Point, rig: Rig) -> float | None:
    """Return the rate to offer; ``None`` for a replay."""
    if point.share is None:
        return point.qps
    if point.workload not in rig.saturation_qps:
        raise InputError(
            f"the saturation rate of {point.workload}, of which this load is {point.share:.0%}, was not found; "
            "the point that searched it says why"
        )
    return share_of(rig.saturation_qps[point.workload], point.share)


def _mean_rate(schedule_s: Floats) -> float:
    """Return the mean rate of a replay in requests per second."""
    return float((len(schedule_s) - 1) / (schedule_s[-1] - schedule_s[0])) if len(schedule_s) > 1 else 0.0


class _WatchedProbe:
    """A probe that ends when the server is dead or the user says so."""

    def __init__(self, probe: Probe, rig: Rig, watch: Watch) -> None:
        self._probe, self._rig, self._watch = probe, rig, watch

    def run(self, rate_qps: float, requests: int, part: int, stop: Callable[[ProbeResult], bool]) -> ProbeResult:
        result = self._probe.run(rate_qps, requests, part, lambda seen: self._watch.halted() or stop(seen))
        if self._rig.stopping():
            raise Stopped
        self._watch.raise_if_dead()
        return result


def _measure_saturation(point: Point, rig: Rig) -> Result:
    """Search the saturation rate, going on after the probes that an earlier search left."""
    from qplan.measure.load.arrivals import Arrivals
    from qplan.measure.load.encoding import encode_requests
    from qplan.measure.saturation.load_probe import LoadProbe
    from qplan.measure.saturation.objective import Objective
    from qplan.measure.saturation.probe import ProbeResult
    from qplan.measure.saturation.search import find_saturation

    earlier = [ProbeResult.from_json(str(probe["result"])) for probe in rig.job.probes.get(point.key, ())]
    objective = Objective.each(Slo.parse_all([point.slo]), percentile=100 * (point.attainment or 0.95))
    asked = prompts(point, rig, _PROBE_PROMPTS)
    count = len(earlier)

    def keep(result: ProbeResult, requests: Requests) -> None:
        nonlocal count
        count += 1
        found = {"rate_qps": result.rate_qps, "result": result.to_json()}
        rig.emit(ProbeFinished(point.key, found, encode_requests(requests)))
        rig.emit(PointProgress(point.key, count, 0, f"probes, last at {result.rate_qps:.3g} qps"))

    with Watch(rig.server, rig.stopping) as watch:
        load = LoadProbe(
            rig.server.endpoint,
            objective,
            asked,
            arrivals=Arrivals.parse(point.arrivals),
            seed=point.seed,
            timeout_s=rig.job.deadlines.request_s,
            processes=rig.job.processes,
            server=rig.server if rig.server.pid is not None else None,
            on_requests=keep,
        )
        found = find_saturation(
            _WatchedProbe(load, rig, watch),
            objective,
            start_qps=earlier[0].rate_qps if earlier else load.guess_qps(),
            budget_s=rig.job.deadlines.saturation_s,
            earlier=earlier,
        )
    known = found.qps or found.low_qps or found.high_qps
    if found.qps is not None:
        rig.saturation_qps.setdefault(point.workload, found.qps)  # the first repeat's: repeats are of the same loads
    row = point_columns(point, rig.job.source, None) | rig.columns | mean_lengths(point.source, asked)
    row |= {
        "status": "ok" if known else "failed",
        "reason": found.reason,
        "saturation_qps": found.qps,
        "saturation_low_qps": found.low_qps,
        "saturation_high_qps": found.high_qps,
        "duration_s": found.probe_s,
        "requests": sum(probe.requests for probe in found.probes),
    }
    # A bound is an observation, but loads are shares of a rate: tried again with more time, the search goes on.
    state = "done" if found.qps is not None else "failed"
    metrics = {"saturation_qps": found.qps, "probes": len(found.probes)}
    return Result(state, (row,), reason=found.reason, metrics=metrics, final=known is not None)


def _measure_quality(point: Point, rig: Rig) -> Result:
    """Judge the server on a task, paired with the baseline's items where they are there."""
    from qplan.measure.quality import evaluate, from_json, observation_rows, to_json

    def progress(task: str, done: int, total: int) -> None:
        rig.emit(PointProgress(point.key, done, total))
        if rig.stopping():
            raise Stopped
        if watch.halted():
            watch.raise_if_dead()
            raise InputError(f"{task} took longer than {rig.job.deadlines.quality_s:g} s, the plan's deadline")

    before = rig.job.baselines.get(point.task)
    baseline = from_json(str(before["results"])) if before else ()
    keep = Path(rig.job.cache) / "baselines" / point.key[:12] if point.target.is_unquantized else None
    with Watch(rig.server, rig.stopping, rig.job.deadlines.quality_s) as watch:
        results = evaluate(
            rig.server,
            [point.task],
            baseline=baseline,
            api=point.api or "chat",
            keep=keep,
            seed=point.seed,
            progress=progress,
        )
    rows = observation_rows(results, point_columns(point, rig.job.source, None) | rig.columns)
    judged = any(row["status"] == "ok" for row in rows)
    reason = None if judged else next((str(row["reason"]) for row in rows if row["reason"]), "nothing could be judged")
    return Result("done" if judged else "failed", tuple(rows), reason=reason, metrics={"results": to_json(results)})


_HOW: dict[str, Callable[[Point, Rig], Result]] = {
    LOAD: _measure_load,
    SATURATION: _measure_saturation,
    QUALITY: _measure_quality,
}
