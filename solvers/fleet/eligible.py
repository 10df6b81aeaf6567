"""The deployments that a demand's classes may run on: which the profiles hold, which fit, and which are good enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qplan.core.demand import Demand, RequestClass
from qplan.core.deployment import Deployment
from qplan.core.errors import InfeasibleError, InputError, nearest
from qplan.core.slo import Slo
from qplan.models.calibrated_source import read_source
from qplan.models.quality import Quality, quality
from qplan.models.steptimes import Bools, Floats, StepTimes
from qplan.solvers.capacity.ask import DEFAULT_PERCENTILE, CapacityAsk
from qplan.solvers.capacity.candidates import candidates
from qplan.solvers.fleet.confidence import surely

_SAME = 1e-9  # of quality: a floor is met by what equals it


@dataclass(frozen=True, slots=True, eq=False)
class Eligible:
    """D deployments that some of K classes may run on.

    Attributes
    ----------
    deployments, steps, provenance : (D,)
    admitted : (K, D)
        Whether a class may: its models, its quantizations, its floor on quality.
    grades : (K, D)
        ``None`` where a class may not.
    rejected
        Counts by class and reason.
    """

    deployments: tuple[Deployment, ...]
    steps: StepTimes
    provenance: tuple[str, ...]
    admitted: Bools
    grades: tuple[tuple[Quality | None, ...], ...]
    known_error: Mapping[str, Any] | None
    rejected: Mapping[str, int]

    @property
    def quality(self) -> Floats:
        """Quality as a fraction of the class's reference, (K, D); 0 where a class may not run."""
        return np.array([[0.0 if grade is None else grade.value for grade in row] for row in self.grades])


def eligible(demand: Demand, confidence: float | None = None) -> Eligible:
    """Find the deployments that may serve some class of `demand`, at any speed.

    Parameters
    ----------
    confidence
        Probability with which a floor on quality is to hold; floors are on the mean estimates if ``None``.

    Raises
    ------
    InputError
        When the profiles have no step times of these models, or nothing of a quantization or GPU that is named.
    """
    models = list(dict.fromkeys(model.name for one in demand.classes for model in one.models))
    read = read_source(demand.profiles, models)
    found = read.found
    if found is None:
        raise InputError(f"{demand.profiles}: no step times of {', '.join(models)}; plans need prefill and decode rows")
    _check_names(demand, found.deployments)
    out: Counter[str] = Counter()
    there = [i for i, one in enumerate(found.deployments) if _to_be_had(demand, one, out)]
    grades, rows = [], []
    for k, one in enumerate(demand.classes):
        row: list[Quality | None] = [_grade(one, found.deployments[i]) for i in there]
        admitted = [grade is not None and _good(grade, one.quality_floor, confidence) for grade in row]
        out[f"{one.name}: below the quality floor of {one.quality_floor:.1%}"] += sum(
            grade is not None and not good for grade, good in zip(row, admitted, strict=True)
        )
        grades.append([grade if good else None for grade, good in zip(row, admitted, strict=True)])
        rows.append(admitted)
        if not any(admitted):
            raise refusal(demand, k, one.slos)
    table = np.array(rows)
    used = np.flatnonzero(table.any(axis=0))
    return Eligible(
        tuple(found.deployments[there[i]] for i in used),
        found.steps.take(np.array(there, dtype=np.intp)[used]),
        tuple(found.provenance[there[i]] for i in used),
        table[:, used],
        tuple(tuple(row[i] for i in used) for row in grades),
        read.known_error,
        {reason: count for reason, count in out.items() if count},
    )


def refusal(demand: Demand, index: int, slos: Sequence[Slo]) -> InfeasibleError:
    """Say why no deployment can serve a class, in the words of the question about one rate, with keys for flags."""
    one = demand.classes[index]
    ask = CapacityAsk(
        rate_qps=max(one.rate_qps),
        slos=tuple(slos),
        models=one.models,
        workload=one.workload,
        quality_floor=one.quality_floor,
        quantizations=one.quantizations,
        inventory={pool.gpu.name: pool.count for pool in sorted(demand.pools, key=lambda pool: pool.count)} or None,
        prices={},
        objective="cost",
        spare=0,
        percentile=DEFAULT_PERCENTILE,
        profiles=demand.profiles,
        assumptions=(),
    )
    try:
        candidates(ask)
    except InfeasibleError as error:
        changes = (f"{one.name}: {change.replace('--', '')}" for change in error.nearest)
        return InfeasibleError(f"{one.name}: {error}", constraint=error.constraint, nearest=changes)
    return InfeasibleError(
        f"{one.name}: no deployment is good enough for its floor on quality with this confidence",
        constraint="quality",
        nearest=(f"{one.name}: a lower quality", "a lower --confidence"),
    )


def _check_names(demand: Demand, deployments: Sequence[Deployment]) -> None:
    """Refuse models, quantizations and GPUs of which the profiles hold nothing."""
    models = {one.model.name for one in deployments}
    held = {_without_16_bit_kind(str(one.quantization)) for one in deployments}
    gpus = {one.gpu.name for one in deployments}
    for one in demand.classes:
        for model in one.models:
            if model.name not in models:
                raise InputError(f"class {one.name}: {demand.profiles} has no step times of {model}")
        for quantization in one.quantizations or ():
            name = _without_16_bit_kind(str(quantization))
            if name not in held:
                raise InputError(
                    f"class {one.name}: {demand.profiles} has no {quantization}; it has {', '.join(sorted(held))}"
                    f"{nearest(name, held)}"
                )
    for pool in demand.pools:
        if pool.gpu.name not in gpus:
            raise InputError(
                f"pool {pool.name}: {demand.profiles} has no profile of these models on {pool.gpu}; it has "
                f"{', '.join(sorted(gpus))}{nearest(pool.gpu.name, gpus)}"
            )


def _to_be_had(demand: Demand, one: Deployment, out: Counter[str]) -> bool:
    """Whether one replica fits its GPUs and some pool."""
    if one.refusal() is not None:
        out["does not fit the GPU's memory, or it lacks the kernels"] += 1
        return False
    if demand.pools and not any(
        pool.gpu.name == one.gpu.name and one.tp <= min(pool.count, pool.node_gpus if pool.node_gpus > 1 else np.inf)
        for pool in demand.pools
    ):
        out["on other GPUs than there are, or more of them"] += 1
        return False
    return True


def _grade(one: RequestClass, deployment: Deployment) -> Quality | None:
    """Return the quality of a deployment for a class; ``None`` where the class does not allow it."""
    if all(deployment.model.name != model.name for model in one.models):
        return None
    if one.quantizations is not None:
        allowed = {_without_16_bit_kind(str(quantization)) for quantization in one.quantizations}
        if _without_16_bit_kind(str(deployment.quantization)) not in allowed:
            return None
    return quality(deployment.model.name, str(deployment.quantization), one.workload.task, one.models[0].name)


def _good(grade: Quality, floor: float, confidence: float | None) -> bool:
    return (grade.value if confidence is None else surely(grade, confidence)) >= floor - _SAME


def _without_16_bit_kind(name: str) -> str:
    """Let FP16 and BF16 stand for each other."""
    return name.replace("FP16", "BF16")
