"""What a study found: the front, how it grew, what mattered, and what was not measured and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.solvers.tuning.axes import Floats, losses
from qplan.solvers.tuning.hypervolume import hypervolume
from qplan.solvers.tuning.study import (
    AT_BEST,
    BOUNDS,
    GPU_HOURS,
    INFEASIBLE,
    OUTLOOK,
    REASON,
    REFUSED,
    SOURCE,
    configuration_of,
    finished,
    measured_of,
)
from qplan.solvers.tuning.tunefile import Tuning

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SCHEMA_VERSION = 1

_FEWEST_FOR_IMPORTANCE = 4
_TREES = 24  # of the forest that tells importance: a study has tens of trials, not thousands
_BEYOND = 0.1  # of the range seen: how far beyond the worst value the reference of the hypervolume is


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration that was tried.

    Attributes
    ----------
    how
        ``front``, ``dominated``, ``over a limit``, ``abandoned``, ``cannot run``, ``lost``, ``running`` or ``queued``.
    values
        By objective, and by quantity with a limit.
    bounds
        Objectives of which the value is only what is surely reached: `reason` says why.
    at_best
        By objective without a value: the best that it can be, where measuring was abandoned for that.
    """

    trial: int
    configuration: str
    parameters: Mapping[str, Any]
    how: str
    values: Mapping[str, float]
    gpu_hours: float | None
    reason: str | None
    bounds: tuple[str, ...] = ()
    at_best: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """A study at a moment.

    Attributes
    ----------
    source
        The table that was looked up, or ``measured``.
    units
        By objective.
    found
        Trials in order.
    hypervolume
        After each measured trial, as a share of the last; of the logarithms of times, rates and the like, up to 10 % of
        the range seen beyond the worst value.
    importance
        By objective, then parameter: share of the objective's variance (functional ANOVA, Hutter et al. 2014); a reason
        instead where it cannot be told.
    outlook
        What the sampler expected of the rest when a worker last ended; ``None`` before.
    skipped
        Configurations that were not measured, with the probability that they are on the front.
    refused
        Combinations that are no configuration, with the reason.
    """

    study: str
    source: str
    units: Mapping[str, str]
    directions: Mapping[str, str]
    found: tuple[Found, ...]
    hypervolume: tuple[float, ...]
    importance: Mapping[str, Mapping[str, float] | str]
    outlook: Mapping[str, float] | None
    skipped: tuple[tuple[str, float], ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def front(self) -> tuple[Found, ...]:
        """The configurations that no other beats."""
        return tuple(one for one in self.found if one.how == "front")

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "front": [asdict(one) for one in self.front]}


def summarize_study(study: Study, tuning: Tuning, *, importance: bool = True) -> Summary:
    """Read a study.

    Parameters
    ----------
    importance
        Whether to tell which parameters matter, which takes a second.
    """
    trials = study.get_trials(deepcopy=False)
    front = {trial.number for trial in study.best_trials} if finished(trials) else set()
    told = study.user_attrs.get(OUTLOOK)
    return Summary(
        study=study.study_name,
        source=str(study.user_attrs.get(SOURCE, "")),
        units={one.name: one.unit for one in tuning.objectives},
        directions={one.name: one.axis.direction for one in tuning.objectives},
        found=tuple(_found(trial, front) for trial in trials if configuration_of(trial) is not None),
        hypervolume=tuple(growth(tuning, finished(trials))),
        importance={one.name: _importance(study, m) for m, one in enumerate(tuning.objectives)} if importance else {},
        outlook=None if told is None else {name: told[name] for name in told if name != "skipped"},
        skipped=tuple((name, probability) for name, probability in told["skipped"]) if told else (),
        refused=tuple((one["what"], one["reason"]) for one in study.user_attrs.get(REFUSED, ())),
    )


def growth(tuning: Tuning, trials: Sequence[FrozenTrial]) -> list[float]:
    """Return the hypervolume of the front after each trial, as a share of the last; those over a limit add nothing."""
    if not trials:
        return []
    axes = [one.axis for one in tuning.objectives]
    points = losses(axes, [trial.values for trial in trials])
    spread = np.ptp(points, axis=0)
    reference = points.max(axis=0) + _BEYOND * np.where(spread > 0, spread, 1.0)
    kept: list[Floats] = []
    volumes = []
    for trial, point in zip(trials, points, strict=True):
        if keeps_limits(trial):
            kept.append(point)
        volumes.append(hypervolume(np.array(kept), reference) if kept else 0.0)
    return [volume / volumes[-1] if volumes[-1] else 0.0 for volume in volumes]


def keeps_limits(trial: FrozenTrial) -> bool:
    """Whether a trial keeps every limit."""
    return all(excess <= 0 for excess in trial.constraints.values())


def _found(trial: FrozenTrial, front: set[int]) -> Found:
    from optuna.trial import TrialState

    how = {
        TrialState.RUNNING: "running",
        TrialState.WAITING: "queued",
        TrialState.PRUNED: "abandoned",
        TrialState.FAIL: "cannot run" if INFEASIBLE in trial.user_attrs else "lost",
    }.get(trial.state)
    if how is None:
        how = "front" if trial.number in front else "dominated" if keeps_limits(trial) else "over a limit"
    return Found(
        trial.number,
        str(configuration_of(trial)),
        dict(trial.params),
        how,
        measured_of(trial),
        trial.user_attrs.get(GPU_HOURS),
        trial.user_attrs.get(INFEASIBLE) or trial.user_attrs.get(REASON),
        tuple(trial.user_attrs.get(BOUNDS, ())),
        dict(trial.user_attrs.get(AT_BEST, {})),
    )


def _importance(study: Study, axis: int) -> Mapping[str, float] | str:
    """Return how much of an objective's variance each parameter tells, or why that cannot be said."""
    import optuna

    trials = finished(study.get_trials(deepcopy=False))
    if len(trials) < _FEWEST_FOR_IMPORTANCE:
        return f"{len(trials)} measurements tell nothing of it"
    if len({trial.values[axis] for trial in trials}) == 1:
        return "all measured alike"
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: float(trial.values[axis])
        )
    except ImportError:
        return "needs scikit-learn: pip install 'qplan[models]'"
    except (ValueError, RuntimeError) as error:
        return str(error)
    return {name: float(share) for name, share in found.items()}
