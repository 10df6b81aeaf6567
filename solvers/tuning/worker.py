"""The loop of a worker: choose a configuration, claim it, measure it, tell the study; until there is reason to end.

::

    ┌► ask ─► await turn ─► budget? ─► choose ─► claim ─► measure ─► tell ─┐
    └──────────────────────────────────────────────────────────────────────┘

Any number of workers run it on one study, on any machines (:mod:`qplan.solvers.tuning.turns`). One that has nothing
left to choose stays while others measure: should one of them die, what it held is measured after all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qplan.solvers.tuning.ending import FEWEST, little_is_left, nothing_to_measure
from qplan.solvers.tuning.events import Began, Ended, Event, Progressed, Stopped, Waiting
from qplan.solvers.tuning.measuring import Abandoned, CannotRun, Halted, Hooks, Measure, Measured
from qplan.solvers.tuning.space import Configuration, Enumerated, groups_of
from qplan.solvers.tuning.study import (
    AT_BEST,
    BOUNDS,
    CONFIGURATION,
    GPU_HOURS,
    INFEASIBLE,
    MEASURED,
    REASON,
    configuration_of,
    finished,
    keep_outlook,
    measured_of,
)
from qplan.solvers.tuning.tunefile import Tuning
from qplan.solvers.tuning.turns import BEAT_S, GRACE_S, Life, Vigil, await_turn, holder_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

    from qplan.solvers.tuning.sampler import FrontSampler

INTERRUPTED = "interrupted; the same command goes on"

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker works on.

    Attributes
    ----------
    sampler
        The study's.
    beat_s, grace_s
        Time between signs of life, and how long others wait for one.
    """

    study: Study
    tuning: Tuning
    enumerated: Enumerated
    measure: Measure
    sampler: FrontSampler
    beat_s: float = BEAT_S
    grace_s: float = GRACE_S


def work(job: Job, *, emit: Callable[[Event], None], stopping: Callable[[], bool]) -> Stopped:
    """Measure configurations until the budget is spent, little is left to gain, or the user asks for an end."""
    with Life(job.study, job.beat_s) as life:
        stopped = _Worker(job, emit, stopping, life).run()
    keep_outlook(job.study, job.sampler.outlook(job.study))
    emit(stopped)
    return stopped


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of measuring a configuration: ``measured``, ``abandoned`` or ``cannot run``.

    Attributes
    ----------
    bounds
        Objectives of which the value is a bound.
    at_best
        By objective without a value: the best that it can be.
    seconds
        How long its GPUs were taken, where whoever measured says so.
    """

    how: str
    values: Mapping[str, float]
    reason: str | None
    bounds: tuple[str, ...] = ()
    seconds: float | None = None
    at_best: Mapping[str, float] = field(default_factory=dict)


class _Worker:
    def __init__(self, job: Job, emit: Callable[[Event], None], stopping: Callable[[], bool], life: Life) -> None:
        from qplan.solvers.tuning.pruner import FrontPruner

        self._job = job
        self._emit = emit
        self._stopping = stopping
        self._life = life
        self._vigil = Vigil(job.study, job.grace_s)
        self._pruner = FrontPruner(job.sampler, job.study)
        groups = groups_of(job.enumerated.configurations)
        self._group = {str(one): group for one, group in zip(job.enumerated.configurations, groups, strict=True)}

    def run(self) -> Stopped:
        reason = None
        while not self._stopping():
            others = self._vigil.look()
            if not self._is_queued():
                reason = self._reason_to_end() or self._little_is_left() or reason
                if reason is not None:
                    if not others:
                        return Stopped(reason)
                    self._emit(Waiting(len(others)))
                    time.sleep(_POLL_S)
                    continue
            reason = self._one_trial()
        return Stopped(INTERRUPTED, interrupted=True)

    def _one_trial(self) -> str | None:
        """Take the next trial; return why there is none."""
        trial = self._job.study.ask()
        self._life.hold(trial)
        try:
            return self._in_turn(trial)
        finally:
            self._life.release()

    def _in_turn(self, trial: Trial) -> str | None:
        from qplan.solvers.tuning.sampler import Exhausted

        study = self._job.study
        frozen = next(t for t in study.get_trials(deepcopy=False) if t.number == trial.number)
        again = configuration_of(frozen) is not None
        await_turn(self._vigil, frozen, stopping=self._stopping)
        reason = None if again else self._reason_to_end(but=trial.number)
        index: int | None = None
        if reason is None and not self._stopping():
            try:
                index = self._job.sampler.candidates.suggest(trial)
            except Exhausted as error:
                reason = str(error)
            except Exception as error:
                self._fail(trial, f"choosing failed: {error}")
                raise
        if index is None:
            self._fail(trial, reason or "stopped before it chose")
            return reason
        one = self._job.enumerated.configurations[index]
        trial.set_user_attr(CONFIGURATION, str(one))
        holder = holder_of(study, str(one), trial.number)
        if holder is not None:
            self._fail(trial, f"trial {holder.number} has it")
            self._emit(Ended(trial.number, str(one), "yielded", {}, f"trial {holder.number} has it", 0.0))
            return None
        self._emit(Began(trial.number, str(one), again))
        self._measure(trial, one, index)
        return None

    def _measure(self, trial: Trial, one: Configuration, index: int) -> None:
        """Measure a configuration and tell the study."""
        known = self._shared(one)
        hooks = Hooks(
            lambda: self._stopping() or self._life.lost,
            lambda note: self._emit(Progressed(trial.number, note)),
            lambda best: self._rules_out(index, best),
        )
        began = time.perf_counter()
        try:
            found = self._found(one, self._job.measure(one, known, hooks), known)
        except CannotRun as error:
            found = _Found("cannot run", error.measured, str(error))
        except Abandoned as error:
            found = _Found("abandoned", {**error.measured, **known}, str(error), at_best=error.at_best)
        except (Halted, KeyboardInterrupt):
            self._fail(trial, "stopped by the user; measured another time")
            self._emit(Ended(trial.number, str(one), "stopped", {}, None, time.perf_counter() - began))
            return
        except Exception as error:
            self._fail(trial, f"{type(error).__name__}: {error}")
            raise
        seconds = time.perf_counter() - began if found.seconds is None else found.seconds
        how, reason = found.how, found.reason
        if not self._tell(trial, one, found, seconds):
            how, reason = "yielded", "others took this worker for dead, and measure it again"
        self._emit(Ended(trial.number, str(one), how, found.values, reason, seconds))

    def _found(self, one: Configuration, measured: Measured, known: Mapping[str, float]) -> _Found:
        """Read what was observed of a configuration; what lacks an objective cannot be compared, and counts as none."""
        quantities = self._job.tuning.quantities
        told = {each.name: each.value(one, measured.rows) for each in quantities}
        values = {name: value for name, value in told.items() if value is not None} | dict(known)
        lacking = [each.name for each in quantities if each.name not in values]
        if lacking:
            return _Found("cannot run", values, f"no value of {', '.join(lacking)}", seconds=measured.seconds)
        bounds = {each.name: said for each in quantities if (said := each.bound(one, measured.rows)) is not None}
        return _Found("measured", values, "; ".join(bounds.values()) or None, tuple(bounds), measured.seconds)

    def _tell(self, trial: Trial, one: Configuration, found: _Found, seconds: float) -> bool:
        """Write what was found; return whether the trial was still this worker's."""
        from optuna.trial import TrialState

        states = {"measured": TrialState.COMPLETE, "abandoned": TrialState.PRUNED, "cannot run": TrialState.FAIL}
        values = found.values
        try:
            trial.set_user_attr(MEASURED, dict(values))
            trial.set_user_attr(GPU_HOURS, one.gpus * seconds / 3600)
            if found.bounds:
                trial.set_user_attr(BOUNDS, list(found.bounds))
            if found.at_best:
                trial.set_user_attr(AT_BEST, dict(found.at_best))
            if found.reason is not None:
                trial.set_user_attr(INFEASIBLE if found.how == "cannot run" else REASON, found.reason)
            for limit in self._job.tuning.limits:
                if limit.objective.name in values:
                    trial.set_constraint(limit.objective.name, limit.excess(values[limit.objective.name]))
            told = [values[each.name] for each in self._job.tuning.objectives] if found.how == "measured" else None
            self._job.study.tell(trial, told, state=states[found.how])
        except (ValueError, RuntimeError) as error:
            if not self._is_over(trial):
                raise error
            return False
        return True

    def _is_over(self, trial: Trial) -> bool:
        return any(
            t.number == trial.number and t.state.is_finished() for t in self._job.study.get_trials(deepcopy=False)
        )

    def _fail(self, trial: Trial, reason: str) -> None:
        from optuna.trial import TrialState

        try:
            trial.set_user_attr(REASON, reason)
            self._job.study.tell(trial, state=TrialState.FAIL)
        except (ValueError, RuntimeError):
            if not self._is_over(trial):
                raise

    def _shared(self, one: Configuration) -> dict[str, float]:
        """Return the quality that another configuration of the same model, quantization and engine has measured."""
        names = [each.name for each in self._job.tuning.quantities if each.task]
        found: dict[str, float] = {}
        for trial in self._job.study.get_trials(deepcopy=False) if names else ():
            held = configuration_of(trial)
            if held is not None and self._group.get(held) == self._group[str(one)]:
                seen = measured_of(trial)
                found |= {name: seen[name] for name in names if name in seen}
        return found

    def _rules_out(self, index: int, best: Mapping[str, float]) -> str | None:
        trials = self._job.study.get_trials(deepcopy=False)
        return self._pruner.rules_out(index, best) if len(finished(trials)) >= FEWEST else None

    def _is_queued(self) -> bool:
        from optuna.trial import TrialState

        return bool(self._job.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _little_is_left(self) -> str | None:
        return little_is_left(self._job.study, self._job.sampler, self._job.tuning.stop_below)

    def _reason_to_end(self, but: int | None = None) -> str | None:
        """Say why no further configuration is to be begun, or return ``None``."""
        trials = [t for t in self._job.study.get_trials(deepcopy=False) if t.number != but]
        return nothing_to_measure(trials, self._job.tuning.budget, len(self._job.enumerated.configurations))
