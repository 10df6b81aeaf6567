"""The configuration to go on with: one of a study's front."""

from __future__ import annotations

from qplan.core.errors import InputError, nearest
from qplan.measure.campaign.points import Target
from qplan.solvers.tuning.space import combinations
from qplan.solvers.tuning.summary import Found, Summary
from qplan.solvers.tuning.tunefile import Tuning


def choose(summary: Summary, trial: int | None, best: str | None) -> Found:
    """Return the configuration that a user wants.

    Parameters
    ----------
    trial
        Number of its trial, which must have been measured.
    best
        Objective by which it is the best of the front.

    Raises
    ------
    InputError
        Nothing, or not exactly one, is said, or there is none such.
    """
    if trial is not None and best is not None:
        raise InputError("--trial and --best: expected one of them")
    if trial is not None:
        found = next((one for one in summary.found if one.trial == trial and one.values), None)
        if found is None:
            numbers = ", ".join(str(one.trial) for one in summary.front) or "none"
            raise InputError(f"--trial: {trial} was not measured; on the front are {numbers}")
        return found
    if not summary.front:
        raise InputError(f"study {summary.study}: nothing is on the front yet")
    if best is None:
        if len(summary.front) == 1:
            return summary.front[0]
        raise InputError(
            f"the front has {len(summary.front)} configurations; say --trial NUMBER, or --best with one of "
            f"{', '.join(summary.units)}"
        )
    if best not in summary.units:
        raise InputError(
            f"--best: unknown objective '{best}'; expected one of {', '.join(summary.units)}"
            f"{nearest(best, summary.units)}"
        )
    sign = -1 if summary.directions[best] == "maximize" else 1
    return min(summary.front, key=lambda one: sign * one.values[best])


def target_of(tuning: Tuning, found: Found) -> Target:
    """Return what is started for a configuration of a study.

    Raises
    ------
    InputError
        The study's file has no such configuration.
    """
    for one in combinations(tuning.space):
        if dict(one.parameters) == dict(found.parameters):
            return one.target
    raise InputError(f"the study's file has no configuration {found.configuration}")
