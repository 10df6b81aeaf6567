"""Configurations that are measured on this machine's engines, by :mod:`qplan.measure.campaign`.

Cheap before dear: quality first, where nobody has shared it, then the saturation search, which ends early when its
probes rule the configuration out of the front, then the load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from qplan.solvers.tuning.measuring import Abandoned, CannotRun, Halted, Hooks, Measured
from qplan.solvers.tuning.objectives import ANY, SERVING, Row
from qplan.solvers.tuning.objectives import QUALITY as JUDGED
from qplan.solvers.tuning.objectives import SATURATION as SEARCHED
from qplan.solvers.tuning.space import Configuration
from qplan.solvers.tuning.tunefile import Tuning

if TYPE_CHECKING:
    from qplan.profiles.store import ProfileStore

_PAIRED = ("kl_divergence", "kl_divergence_lower_bound", "top1_agreement")


class EngineMeasure:
    """Starts engines and measures; what was observed is kept in a store.

    Parameters
    ----------
    store
        Where observations are kept.
    cache
        Folder of quantized weights and engine logs; by default the user's cache folder.

    Raises
    ------
    InputError
        The study cannot be measured: its GPUs differ, a model has no weights, or a metric needs a baseline beside it.
    MeasurementError
        An engine is not installed.
    """

    def __init__(self, tuning: Tuning, store: ProfileStore, cache: Path | None = None) -> None:
        _check(tuning)
        self._tuning = tuning
        self._store = store
        self._cache = cache or cache_folder()
        for engine in tuning.space.knobs_of:
            open_engine(engine).version()

    def refusal(self, one: Configuration) -> str | None:
        """Say why this machine cannot measure a configuration, or return ``None``."""
        return refusal(one.target, one.gpu, self._devices(one), open_engine(one.target.engine))

    def __call__(self, one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        """Measure `one` and keep its observations."""
        run = _Run(self._tuning, one, known, hooks)
        points = run.points()
        deadlines = self._tuning.conditions.deadlines_s or {}
        job = Job(
            number=0,
            target=one.target,
            points=points,
            devices=self._devices(one)[: one.target.tp],
            folder=str(self._cache / "runs" / re.sub(r"[^\w.-]+", "-", f"{self._tuning.name} {one}")),
            cache=str(self._cache / "weights"),
            source=f"study {self._tuning.name}",
            deadlines=Deadlines(**{f"{name}_s": value for name, value in deadlines.items()}),
        )
        measure_block(job, run.take, run.stopping)
        rows = tuple({**row, **one.columns} for result in run.results for row in result.rows)
        with self._store.transaction(write=True) as connection:
            self._store.put(connection, rows, where=f"study {self._tuning.name}")
        if run.ruled_out is not None:
            raise Abandoned(run.ruled_out, run.values())
        if len(run.results) < len(points):
            raise Halted
        broken = next((result.reason for result in run.results if result.state == "failed"), None)
        if broken is not None:
            raise CannotRun(broken, run.values())
        return Measured(rows, sum(result.seconds for result in run.results))

    def _devices(self, one: Configuration) -> tuple[int, ...]:
        if one.gpu.is_cpu:
            return ()
        return self._tuning.conditions.devices or tuple(range(one.target.tp))


class _Run:
    """One configuration being measured: the results so far, and whether they rule it out."""

    def __init__(self, tuning: Tuning, one: Configuration, known: Mapping[str, float], hooks: Hooks) -> None:
        self._tuning = tuning
        self._one = one
        self._known = known
        self._hooks = hooks
        self._stage = ""
        self.results: list[Result] = []
        self.ruled_out: str | None = None

    def points(self) -> tuple[Point, ...]:
        """Return what is to be measured, cheap before dear."""
        asked, needed = self._tuning.conditions, self._tuning.quantities
        tasks = dict.fromkeys(each.task for each in needed if each.phase == JUDGED)
        shared = {each.task for each in needed if each.task and each.name in self._known}
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
        return self.ruled_out is not None or self._hooks.stopping()

    def take(self, event: Event) -> None:
        """Note a result, tell the display, and look whether the configuration can still enter the front."""
        match event:
            case EngineStarting():
                self._hooks.progress("starting the engine")
            case EngineReady():
                self._hooks.progress(f"{event.version} is ready after {event.seconds:.1f} s")
            case PointStarted():
                self._stage = event.point.rpartition(": ")[2]
                self._hooks.progress(self._stage)
            case PointProgress():
                of = f"/{event.of}" if event.of else ""
                self._hooks.progress(f"{self._stage}: {event.count}{of} {event.note}".rstrip())
            case PointRetried():
                self._hooks.progress(f"failed, again in {event.wait_s:g} s: {event.reason}")
            case ProbeFinished():
                self._judge(_highest_still_possible(event.result))
            case PointFinished():
                self.results.append(event.result)
                self._judge({})

    def values(self) -> dict[str, float]:
        """Return the values that are known by now."""
        rows: list[Row] = [{**row, **self._one.columns} for result in self.results for row in result.rows]
        found = {each.name: each.value(self._one, rows) for each in self._tuning.quantities}
        return {name: value for name, value in found.items() if value is not None} | dict(self._known)

    def _judge(self, bounds: Mapping[str, float]) -> None:
        names = {each.name for each in self._tuning.objectives}
        best = {name: value for name, value in (dict(bounds) | self.values()).items() if name in names}
        if best and self.ruled_out is None:
            self.ruled_out = self._hooks.rules_out(best)


def _highest_still_possible(probe: Mapping[str, Any]) -> dict[str, float]:
    """Return the rate that saturation cannot exceed after a probe at which the queue grew beyond doubt."""
    from qplan.measure.saturation.probe import ProbeResult

    seen = ProbeResult.from_json(str(probe["result"]))
    return {"saturation": seen.rate_qps} if seen.growing and not seen.invalid else {}


def _has_load(tuning: Tuning) -> bool:
    return tuning.conditions.qps is not None or tuning.conditions.share is not None


def _check(tuning: Tuning) -> None:
    """Refuse a study that cannot be measured here, before anything is started."""
    gpus = tuning.space.choices["gpu"]
    if len(gpus) > 1:
        raise InputError(
            f"{tuning.space.where}: {', '.join(map(str, gpus))}: workers measure on one kind of GPU; tune each kind by "
            "itself, or look all up with --from-store"
        )
    for model in tuning.space.models:
        if not model.weights:
            raise InputError(f"{tuning.space.where}: model {model.name} has no weights to load; add them to 'models'")
    for each in tuning.quantities:
        if each.metric in _PAIRED:
            raise InputError(
                f"{tuning.places[each.name]}: {each.metric} is measured beside a baseline, which a study does not "
                "keep; expected perplexity or a score"
            )
