"""A plan as what has to be launched: equal replicas with their number in each period, and who is sent where."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.fleetplan import KIND, FleetPlan
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.plan import Plan, ReplicaGroup
from qplan.core.quantization import Quantization

_LONGEST_LABEL = 48  # RFC 1123 has 63; Kubernetes and the numbering of equals append to it
_GPU_NAME = 2  # words of a GPU's name that tell it from others: H100-SXM5


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """Equal replicas of one deployment.

    Attributes
    ----------
    name
        A DNS label (RFC 1123), unique in the plan.
    pool
        How the GPUs are bought; ``None`` where the plan does not say.
    replicas : (H,)
        How many run in each period.
    """

    name: str
    deployment: Deployment
    pool: str | None
    replicas: tuple[int, ...]

    @property
    def most(self) -> int:
        """Replicas in the period that has most."""
        return max(self.replicas)


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one kind go in one period.

    Attributes
    ----------
    request_class
        ``None`` where the plan has only one.
    input_tokens, output_tokens
        Lengths of the bucket's centre; ``None`` where the plan does not tell lengths apart.
    weight
        Share of the class's requests that are of these lengths.
    weights
        Where they go: shares by name of the replica set; sum to 1.
    """

    period: int
    request_class: str | None
    input_tokens: float | None
    output_tokens: float | None
    weight: float
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Launches:
    """Everything that a plan runs.

    Attributes
    ----------
    start_h : (H,)
        When each period begins, in hours from the start of the horizon.
    horizon_h
        Length of the horizon; ``None`` where the plan is for one rate that does not change.
    """

    sets: tuple[ReplicaSet, ...]
    start_h: tuple[float, ...]
    horizon_h: float | None
    routes: tuple[Route, ...]


def read_launches(path: Path) -> Launches:
    """Read a plan that ``qplan capacity --json`` wrote.

    Raises
    ------
    InputError
        The file is no plan, or the plan has no fleet.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); expected what qplan capacity --json writes") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: no JSON object; expected what qplan capacity --json writes")
    try:
        return _of_hours(FleetPlan.from_json(data)) if data.get("kind") == KIND else _of_rate(Plan.from_json(data))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _of_rate(plan: Plan) -> Launches:
    _has_fleet(plan.status, plan.reason, bool(plan.replicas))
    names = _labels([_deployment(group) for group in plan.replicas], [""] * len(plan.replicas))
    sets = tuple(
        ReplicaSet(name, _deployment(group), None, (group.count,))
        for name, group in zip(names, plan.replicas, strict=True)
    )
    weights = {name: group.share for name, group in zip(names, plan.replicas, strict=True)}
    return Launches(sets, (0.0,), None, (Route(0, None, None, None, 1.0, weights),))


def _of_hours(plan: FleetPlan) -> Launches:
    _has_fleet(plan.status, plan.reason, any(period.groups for period in plan.periods))
    deployments = [_deployment(option) for option in plan.options]
    labels = _labels(deployments, [option.pool for option in plan.options])
    names = {option.name: label for option, label in zip(plan.options, labels, strict=True)}
    counts = [{group.option: group.count for group in period.groups} for period in plan.periods]
    sets = tuple(
        ReplicaSet(names[option.name], deployment, option.pool, tuple(one.get(option.name, 0) for one in counts))
        for option, deployment in zip(plan.options, deployments, strict=True)
        if any(one.get(option.name, 0) for one in counts)
    )
    routes = tuple(
        Route(
            number,
            bucket.request_class,
            bucket.input_tokens,
            bucket.output_tokens,
            bucket.weight,
            {names[group.option]: group.shares[b] for group in period.groups if group.shares[b] > 0},
        )
        for number, period in enumerate(plan.periods)
        for b, bucket in enumerate(plan.buckets)
        if any(group.shares[b] > 0 for group in period.groups)
    )
    return Launches(sets, tuple(period.start_h for period in plan.periods), plan.hours, routes)


def _has_fleet(status: str, reason: str | None, has: bool) -> None:
    if not has:
        raise InputError(f"the plan is {status} and has no fleet to launch" + (f": {reason}" if reason else ""))


def _deployment(group: ReplicaGroup | Any) -> Deployment:
    """Return the deployment that a group of either kind of plan names."""
    return Deployment(
        Model.named(group.model, "the plan's model"),
        Quantization.parse(group.quantization, "the plan's quantization"),
        Gpu.named(group.gpu, "the plan's GPU"),
        group.tp,
        group.engine,
        group.engine_version,
    )


def dns_label(text: str) -> str:
    """Return `text` as a label of RFC 1123."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_LABEL].strip("-")


def _labels(deployments: list[Deployment], pools: list[str]) -> list[str]:
    """Return a label for each, numbered where two would be equal."""
    stems = []
    for one, pool in zip(deployments, pools, strict=True):
        gpu = "-".join(one.gpu.name.split("-")[:_GPU_NAME])
        bought = pool.removeprefix(one.gpu.name)
        stems.append(dns_label(f"{one.model}-{one.quantization}-{gpu}-tp{one.tp}-{bought}"))
    counted: Counter[str] = Counter()
    labels = []
    for stem in stems:
        counted[stem] += 1
        labels.append(f"{stem}-{counted[stem]}" if stems.count(stem) > 1 else stem)
    return labels
