"""Configurations that are measured on this machine's engines, by :mod:`qplan.measure.campaign`.

Cheap before dear: quality first, where nobody has shared it, then the saturation search, which ends early when its
probes rule the configuration out of the front, then the load.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError
from qplan.measure.campaign.block import Job, measure_block
from qplan.measure.campaign.events import (
    EngineReady,
    EngineStarting,
    Event,
    PointFinished,
    PointProgress,
    PointRetried,
    PointStarted,
    ProbeFinished,
    Result,
)
from qplan.measure.campaign.grid import refusal
from qplan.measure.campaign.plan import Deadlines
from qplan.measure.campaign.points import LOAD, QUALITY, SATURATION, Point
from qplan.measure.campaign.runner import cache_folder
from qplan.measure.engines import open_engine
from qplan.solvers.tuning.baselines import Baselines, Kept, check_baselines
from qplan.solvers.tuning.measuring import Abandoned, CannotRun, Halted, Hooks, Measured
from qplan.solvers.tuning.objectives import ANY, SERVING, Row, bounds_of_saturation
from qplan.solvers.tuning.objectives import QUALITY as JUDGED
from qplan.solvers.tuning.objectives import SATURATION as SEARCHED
from qplan.solvers.tuning.space import Configuration, Enumerated, enumerate_space
from qplan.solvers.tuning.tunefile import Tuning

Keep = Callable[[Sequence[Row]], None]


def measurable(tuning: Tuning) -> Enumerated:
    """Return the configurations of a study that engines can measure, here or on nodes like this.

    Raises
    ------
    InputError
        Its GPUs differ, a model has no weights, a metric has nothing to be compared with, or no configuration can run.
    """
    gpus = tuning.space.choices["gpu"]
    if len(gpus) > 1:
        raise InputError(
            f"{tuning.space.where}: {', '.join(map(str, gpus))}: workers measure on one kind of GPU; tune each kind by "
            "itself, or look all up with --from-store"
        )
    for model in tuning.space.models:
        if not model.weights:
            raise InputError(f"{tuning.space.where}: model {model.name} has no weights to load; add them to 'models'")
    found = enumerate_space(
        tuning.space,
        lambda one: refusal(one.target, one.gpu, _devices(tuning, one), open_engine(one.target.engine)),
    )
    check_baselines(tuning, found.configurations)
    return found


class EngineMeasure:
    """Starts engines and measures.

    Parameters
    ----------
    keep
        Called with what was observed of a configuration.
    cache
        Folder of quantized weights, baselines and engine logs; by default the user's cache folder.

    Raises
    ------
    MeasurementError
        An engine is not installed.
    """

    def __init__(self, tuning: Tuning, keep: Keep, cache: Path | None = None) -> None:
        self._tuning = tuning
        self._keep = keep
        self._cache = cache or cache_folder()
        self._baselines = Baselines(tuning, self._cache / "baselines")
        for engine in tuning.space.knobs_of:
            open_engine(engine).version()

    def __call__(self, one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        """Measure `one` and keep its observations."""
        run = _Run(self._tuning, one, known, hooks)
        baselines, before_s = self._beside(one, run)
        self._measure(one, run.points, run, run.stopping, baselines)
        if one.target.is_unquantized:
            for point, result in zip(run.points, run.results, strict=False):
                if point.task in self._baselines.tasks and result.state == "done":
                    self._baselines.keep(point, result)
        if run.ruled_out is not None:
            raise Abandoned(run.ruled_out, run.values(), run.at_best)
        if len(run.results) < len(run.points):
            raise Halted
        broken = [result for result in run.results if result.state == "failed"]
        if broken and not run.is_told():  # a search that found only a bound has failed, but tells something
            raise CannotRun("; ".join(dict.fromkeys(map(_why, broken))), run.values())
        return Measured(run.rows, before_s + sum(result.seconds for result in run.results))

    def _beside(self, one: Configuration, run: _Run) -> tuple[dict[str, Kept], float]:
        """Return the unquantized model's results of the tasks that compare with it, and how long judging it took."""
        base = None if one.target.is_unquantized else self._baselines.beside(one)
        if base is None:
            return {}, 0.0
        began = time.perf_counter()

        hooks = Hooks(run.hooks.stopping, lambda note: run.hooks.progress(f"unquantized first: {note}"), lambda _: None)

        def measure(point: Point) -> Result:
            judged = _Run(self._tuning, base, {}, hooks)
            self._measure(base, (point,), judged, hooks.stopping, {})
            if not judged.results:
                raise Halted
            return judged.results[0]

        asked = {p.task: replace(p, target=base.target) for p in run.points if p.task in self._baselines.tasks}
        return self._baselines.results(asked, measure, run.hooks.stopping), time.perf_counter() - began

    def _measure(
        self,
        one: Configuration,
        points: tuple[Point, ...],
        run: _Run,
        stopping: Callable[[], bool],
        baselines: Mapping[str, Kept],
    ) -> None:
        """Start the engine of a configuration, measure points, and keep what was observed."""
        deadlines = self._tuning.conditions.deadlines_s or {}
        job = Job(
            number=0,
            target=one.target,
            points=points,
            devices=_devices(self._tuning, one)[: one.target.tp],
            folder=str(self._cache / "runs" / re.sub(r"[^\w.-]+", "-", f"{self._tuning.name} {one}")),
            cache=str(self._cache / "weights"),
            source=f"study {self._tuning.name}",
            deadlines=Deadlines(**{f"{name}_s": value for name, value in deadlines.items()}),
            baselines=baselines,
        )
        measure_block(job, run.take, stopping)
        self._keep(run.rows)


class _Run:
    """One configuration being measured: the results so far, and whether they rule it out."""

    def __init__(self, tuning: Tuning, one: Configuration, known: Mapping[str, float], hooks: Hooks) -> None:
        self._tuning = tuning
        self._one = one
        self._known = known
        self._stage = ""
        self.hooks = hooks
        self.points = self._points()
        self.results: list[Result] = []
        self.ruled_out: str | None = None
        self.at_best: Mapping[str, float] = {}

    @property
    def rows(self) -> tuple[Row, ...]:
        """What was observed."""
        return tuple({**row, **self._one.columns} for result in self.results for row in result.rows)

    def _points(self) -> tuple[Point, ...]:
        """Return what is to be measured, cheap before dear."""
        asked, needed = self._tuning.conditions, self._tuning.quantities
        tasks = dict.fromkeys(each.task for each in needed if each.phase == JUDGED)
        asked_of = {task: {each.name for each in needed if each.task == task} for task in tasks}
        shared = {task for task, names in asked_of.items() if names <= self._known.keys()}
        api = None if asked.quality_api == "chat" else asked.quality_api
        quality = [Point(self._one.target, QUALITY, 0, task=task, api=api, seed=asked.seed) for task in tasks]
        priced = any(each.phase == ANY and each.name == "cost" for each in needed)
        loaded = any(each.phase == SERVING for each in needed) or (priced and _has_load(self._tuning))
        search = Point(
            self._one.target,
            SATURATION,
            0,
            workload=asked.workload,
            source=asked.workload,
            arrivals=asked.arrivals,
            slo=",".join(map(str, asked.slos)),
            attainment=asked.attainment,
            warm_up_s=asked.warm_up_s,
            seed=asked.seed,
        )
        points = [point for point in quality if point.task not in shared]
        if any(each.phase == SEARCHED for each in needed) or (loaded and asked.share is not None) or priced > loaded:
            points.append(search)
        if loaded:
            points.append(replace(search, kind=LOAD, duration_s=asked.duration_s, qps=asked.qps, share=asked.share))
        return tuple(points or quality)

    def stopping(self) -> bool:
        """Whether the measurement is to end now."""
        return self.ruled_out is not None or self.hooks.stopping()

    def take(self, event: Event) -> None:
        """Note a result, tell the display, and look whether the configuration can still enter the front."""
        match event:
            case EngineStarting():
                self.hooks.progress("starting the engine")
            case EngineReady():
                self.hooks.progress(f"{event.version} is ready after {event.seconds:.1f} s")
            case PointStarted():
                self._stage = event.point.rpartition(": ")[2]
                self.hooks.progress(self._stage)
            case PointProgress():
                of = f"/{event.of}" if event.of else ""
                self.hooks.progress(f"{self._stage}: {event.count}{of} {event.note}".rstrip())
            case PointRetried():
                self.hooks.progress(f"failed, again in {event.wait_s:g} s: {event.reason}")
            case ProbeFinished():
                self._judge(_highest_still_possible(event.result))
            case PointFinished():
                self.results.append(event.result)
                self._judge({})

    def values(self) -> dict[str, float]:
        """Return the values that are known by now."""
        rows = self.rows
        found = {each.name: each.value(self._one, rows) for each in self._tuning.quantities}
        return {name: value for name, value in found.items() if value is not None} | dict(self._known)

    def is_told(self) -> bool:
        """Whether every quantity that the study asks for is known."""
        return self.values().keys() >= {each.name for each in self._tuning.quantities}

    def _judge(self, bounds: Mapping[str, float]) -> None:
        names = {each.name for each in self._tuning.objectives}
        best = {name: value for name, value in (dict(bounds) | self.values()).items() if name in names}
        if best and self.ruled_out is None:
            self.ruled_out = self.hooks.rules_out(best)
            self.at_best = {name: bound for name, bound in bounds.items() if name in names}


def _highest_still_possible(probe: Mapping[str, Any]) -> dict[str, float]:
    """Return the rate that saturation cannot exceed after a probe at which the queue grew beyond doubt."""
    from qplan.measure.saturation.probe import ProbeResult

    seen = ProbeResult.from_json(str(probe["result"]))
    return {"saturation": seen.rate_qps} if seen.growing and not seen.invalid else {}


def _why(broken: Result) -> str:
    """Say why a point tells nothing, or on which side of what was tried it is."""
    return bounds_of_saturation(broken.rows) or str(broken.reason)


def _has_load(tuning: Tuning) -> bool:
    return tuning.conditions.qps is not None or tuning.conditions.share is not None


def _devices(tuning: Tuning, one: Configuration) -> tuple[int, ...]:
    if one.gpu.is_cpu:
        return ()
    return tuning.conditions.devices or tuple(range(one.target.tp))
