"""What a study has found of each candidate, read from its trials by Optuna's own states alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qplan.solvers.tuning.axes import Axis
from qplan.solvers.tuning.candidates import Candidates

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

CHOSEN = "qplan:candidate"
"""System attribute in which the sampler writes its choice, before parameters are suggested."""

MEASURED, INFEASIBLE = "measured", "infeasible"
"""User attributes: what a pruned trial measured, by objective; why the engine cannot run a configuration."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Findings of N candidates and M objectives.

    Attributes
    ----------
    losses
        (N, M): measured, also of trials that were abandoned; NaN where there is none.
    complete
        (N,): all objectives measured and all constraints met: may be on the front.
    constraints
        By name: (N,), at most 0 where it is met, NaN where it was not measured.
    refused, running, over
        (N,): the engine cannot run it; somebody measures it, or will; it was measured, abandoned or refused.
    """

    losses: Floats
    complete: Bools
    constraints: Mapping[str, Floats]
    refused: Bools
    running: Bools
    over: Bools

    @property
    def taken(self) -> Bools:
        """Which candidates are never proposed again, (N,)."""
        return self.over | self.running

    @property
    def measured(self) -> Floats:
        """Losses of what may be on the front, (n, M)."""
        return self.losses[self.complete]

    def key(self) -> bytes:
        """Return what tells whether anything was found since: of finished trials only."""
        rows = [self.losses, self.complete, self.refused, *self.constraints.values()]
        return b"".join(np.ascontiguousarray(row).tobytes() for row in rows)


def evidence_of(
    candidates: Candidates, axes: Sequence[Axis], trials: Sequence[FrozenTrial], but: int | None = None
) -> Evidence:
    """Read what trials found; the trial with number `but` is left out.

    Raises
    ------
    InputError
        When a value of a logarithmic axis is not above 0.
    """
    from optuna.trial import TrialState

    count = len(candidates)
    losses = np.full((count, len(axes)), np.nan)
    complete, refused, running, over = (np.zeros(count, dtype=bool) for _ in range(4))
    constraints: dict[str, Floats] = {}
    for trial in trials:
        index = candidate_of(candidates, trial)
        if index is None or trial.number == but:
            continue
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            running[index] = True
        elif trial.state == TrialState.FAIL:
            refused[index] |= INFEASIBLE in trial.user_attrs
        else:
            over[index] = True
            for m, value in _values(axes, trial):
                losses[index, m] = axes[m].losses(value)
            for name, value in trial.constraints.items():
                constraints.setdefault(name, np.full(count, np.nan))[index] = value
            complete[index] |= trial.state == TrialState.COMPLETE and all(v <= 0 for v in trial.constraints.values())
    return Evidence(losses, complete, constraints, refused, running, over | refused)


def candidate_of(candidates: Candidates, trial: FrozenTrial) -> int | None:
    """Return the candidate that a trial measures: by its choice, its parameters, or those that it is to have."""
    attributes: Mapping[str, Any] = trial.system_attrs
    fixed = attributes.get("fixed_params")
    if fixed and (index := candidates.index(fixed)) is not None:
        return index
    chosen = candidates.index(trial.params)
    return chosen if chosen is not None else candidates.place(attributes.get(CHOSEN))


def _values(axes: Sequence[Axis], trial: FrozenTrial) -> list[tuple[int, float]]:
    """Return what a finished trial measured: number of the objective, and value."""
    if trial.values is not None and len(trial.values) == len(axes):
        return list(enumerate(trial.values))
    partial: Mapping[str, float] = trial.user_attrs.get(MEASURED, {})
    return [(m, float(partial[axis.name])) for m, axis in enumerate(axes) if axis.name in partial]
