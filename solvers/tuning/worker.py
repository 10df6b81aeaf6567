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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplan.solvers.tuning.measuring import Abandoned, CannotRun, Halted, Hooks, Measure, Measured
from qplan.solvers.tuning.space import Configuration, Enumerated, groups_of
from qplan.solvers.tuning.study import (
    CONFIGURATION,
    GPU_HOURS,
    INFEASIBLE,
    MEASURED,
    REASON,
    configuration_of,
    finished,
    is_infeasible,
    keep_outlook,
    measured_of,
)
from qplan.solvers.tuning.tunefile import Budget, Tuning
from qplan.solvers.tuning.turns import BEAT_S, GRACE_S, Life, Vigil, await_turn, holder_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from qplan.solvers.tuning.sampler import FrontSampler

_POLL_S = 0.5
_FEWEST_TO_STOP = 4
"""Measurements before which an expected gain says nothing."""


@dataclass(frozen=True, slots=True)
class Began:
    """A configuration is being measured."""

    trial: int
    configuration: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a measurement is."""

    trial: int
    note: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial is over: ``measured``, ``abandoned``, ``cannot run``, ``yielded`` or ``stopped``."""

    trial: int
    configuration: str
    how: str
    values: Mapping[str, float]
    reason: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing is left to choose, but others still measure."""

    others: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The worker ends, and why."""

    reason: str
    interrupted: bool = False


Event = Began | Progressed | Ended | Waiting | Stopped


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
        return Stopped("interrupted; the same command goes on", interrupted=True)

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
        from optuna.trial import TrialState

        known = self._shared(one)
        hooks = Hooks(
            lambda: self._stopping() or self._life.lost,
            lambda note: self._emit(Progressed(trial.number, note)),
            lambda best: self._rules_out(index, best),
        )
        began = time.perf_counter()
        values: dict[str, float] = {}
        how, reason, state = "measured", None, TrialState.COMPLETE
        measured: Measured | None = None
        try:
            measured = self._job.measure(one, known, hooks)
            values = self._values(one, measured) | known
            lacking = [each.name for each in self._job.tuning.quantities if each.name not in values]
            if lacking:
                how, reason, state = "cannot run", f"no value of {', '.join(lacking)}", TrialState.FAIL
        except CannotRun as error:
            values = dict(error.measured)
            how, reason, state = "cannot run", str(error), TrialState.FAIL
        except Abandoned as error:
            values = dict(error.measured) | known
            how, reason, state = "abandoned", str(error), TrialState.PRUNED
        except (Halted, KeyboardInterrupt):
            self._fail(trial, "stopped by the user; measured another time")
            self._emit(Ended(trial.number, str(one), "stopped", {}, None, time.perf_counter() - began))
            return
        except Exception as error:
            self._fail(trial, f"{type(error).__name__}: {error}")
            raise
        seconds = time.perf_counter() - began if measured is None else measured.seconds
        if self._tell(trial, one, state, values, seconds, reason):
            self._emit(Ended(trial.number, str(one), how, values, reason, seconds))
        else:
            lost = "others took this worker for dead, and measure it again"
            self._emit(Ended(trial.number, str(one), "yielded", values, lost, seconds))

    def _tell(
        self,
        trial: Trial,
        one: Configuration,
        state: Any,
        values: Mapping[str, float],
        seconds: float,
        reason: str | None,
    ) -> bool:
        """Write what was found; return whether the trial was still this worker's."""
        from optuna.trial import TrialState

        try:
            trial.set_user_attr(MEASURED, dict(values))
            trial.set_user_attr(GPU_HOURS, one.gpus * seconds / 3600)
            if reason is not None:
                trial.set_user_attr(INFEASIBLE if state == TrialState.FAIL else REASON, reason)
            for limit in self._job.tuning.limits:
                if limit.objective.name in values:
                    trial.set_constraint(limit.objective.name, limit.excess(values[limit.objective.name]))
            told = [values[each.name] for each in self._job.tuning.objectives] if state == TrialState.COMPLETE else None
            self._job.study.tell(trial, told, state=state)
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

    def _values(self, one: Configuration, measured: Measured) -> dict[str, float]:
        found = {each.name: each.value(one, measured.rows) for each in self._job.tuning.quantities}
        return {name: value for name, value in found.items() if value is not None}

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
        return self._pruner.rules_out(index, best) if len(finished(trials)) >= _FEWEST_TO_STOP else None

    def _is_queued(self) -> bool:
        from optuna.trial import TrialState

        return bool(self._job.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _reason_to_end(self, but: int | None = None) -> str | None:
        """Say why no further configuration is to be begun, or return ``None``."""
        trials = [t for t in self._job.study.get_trials(deepcopy=False) if t.number != but]
        if is_spent(self._job.tuning.budget, trials):
            return f"the budget of {self._job.tuning.budget} is spent"
        held = {configuration_of(trial) for trial in trials if _counts(trial)}
        if len(held - {None}) >= len(self._job.enumerated.configurations):
            return "every configuration is measured"
        return None

    def _little_is_left(self) -> str | None:
        """Say how little is left to gain where a further measurement is not worth it, or return ``None``."""
        trials = self._job.study.get_trials(deepcopy=False)
        if len(finished(trials)) < _FEWEST_TO_STOP:
            return None
        outlook = self._job.sampler.outlook(self._job.study)
        if not outlook.done(self._job.tuning.stop_below):
            return None
        if not outlook.remaining:
            return "no configuration that is left is on the front with a probability worth a measurement"
        return (
            f"one more measurement is expected to add {outlook.next_gain:.2%} to the front's hypervolume, all others "
            f"together {outlook.left:.2%} (90 % sure: at most {outlook.left_upper:.2%})"
        )


def is_spent(budget: Budget, trials: list[FrozenTrial]) -> bool:
    """Whether a budget allows no further measurement; those that run or are queued count as what they will take."""
    held = [trial for trial in trials if _counts(trial)]
    if budget.measurements is not None:
        return len(held) >= budget.measurements
    assert budget.gpu_hours is not None
    known = [float(trial.user_attrs[GPU_HOURS]) for trial in held if GPU_HOURS in trial.user_attrs]
    usual = sum(known) / len(known) if known else 0.0
    return sum(known) + usual * (len(held) - len(known)) >= budget.gpu_hours


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial takes, or took, a measurement; what died or was stopped is measured in another."""
    from optuna.trial import TrialState

    return configuration_of(trial) is not None and (trial.state != TrialState.FAIL or is_infeasible(trial))
