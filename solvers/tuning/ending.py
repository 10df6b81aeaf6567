"""When a study is over: the budget is spent, all is measured, or little is left to gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplan.solvers.tuning.study import GPU_HOURS, configuration_of, finished, is_infeasible
from qplan.solvers.tuning.tunefile import Budget

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from qplan.solvers.tuning.sampler import FrontSampler

FEWEST = 4
"""Measurements before which an expected gain says nothing."""


def nothing_to_measure(trials: Sequence[FrozenTrial], budget: Budget, configurations: int) -> str | None:
    """Say why no further one of so many configurations can be begun, or return ``None``."""
    if is_spent(budget, trials):
        return f"the budget of {budget} is spent"
    if len({configuration_of(trial) for trial in trials if _counts(trial)}) >= configurations:
        return "every configuration is measured"
    return None


def little_is_left(study: Study, sampler: FrontSampler, stop_below: float) -> str | None:
    """Say how little is left to gain where a further measurement is not worth it, or return ``None``."""
    if len(finished(study.get_trials(deepcopy=False))) < FEWEST:
        return None
    outlook = sampler.outlook(study)
    if not outlook.done(stop_below):
        return None
    if not outlook.remaining:
        return "no configuration that is left is on the front with a probability worth a measurement"
    return (
        f"one more measurement is expected to add {outlook.next_gain:.2%} to the front's hypervolume, all others "
        f"together {outlook.left:.2%} (90 % sure: at most {outlook.left_upper:.2%})"
    )


def is_spent(budget: Budget, trials: Sequence[FrozenTrial]) -> bool:
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
