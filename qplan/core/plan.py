"""Plans: a fleet, what it is predicted to do, what was proven about it, and what was assumed.

A plan is plain data that becomes JSON and comes back. ``schema_version`` rises when a field changes meaning or goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qplan.core.errors import InputError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted value with its interval.

    Attributes
    ----------
    value, lower, upper
        In the unit of the metric: seconds for latencies, a fraction of the baseline for quality.
    coverage
        Share of cases in which the truth is meant to lie in the interval; ``None`` where the interval is a judgement.
    basis
        What value and interval stand on, in words.
    """

    value: float
    lower: float
    upper: float
    coverage: float | None
    basis: str


@dataclass(frozen=True, slots=True)
class LatencyPrediction:
    """A percentile of a latency metric in seconds, with its interval and the objective on it, if any."""

    metric: str
    percentile: float
    value: float
    lower: float
    upper: float
    slo: float | None


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something the user did not say: what was taken, why, and the flag that changes it."""

    what: str
    value: str
    flag: str


@dataclass(frozen=True, slots=True)
class ReplicaGroup:
    """Equal replicas of one deployment.

    Attributes
    ----------
    share
        Fraction of all requests that goes to this group.
    load_qps, saturation_qps
        Requests/s that one replica gets, and that it could take within the SLOs.
    """

    deployment: str
    model: str
    quantization: str
    gpu: str
    tp: int
    engine: str
    engine_version: str
    count: int
    cost_per_hour: float
    share: float
    load_qps: float
    saturation_qps: float
    quality: Prediction
    predicted: tuple[LatencyPrediction, ...]

    @property
    def headroom(self) -> float:
        """Fraction of the group's saturation rate that is left."""
        return 1 - self.load_qps / self.saturation_qps


@dataclass(frozen=True, slots=True)
class Plan:
    """An answer to a capacity question.

    Attributes
    ----------
    status
        ``optimal`` (proven), ``feasible`` (gap stated) or ``infeasible`` (then `reason` and `nearest` say why).
    objective_name, objective, bound, gap
        What was minimised, its value, the solver's proven lower bound on it and the relative distance between them.
    power_w, power_note
        Watts of the fleet, or ``None`` with the reason.
    quality
        Traffic-weighted quality against the reference model at 16 bits.
    predicted
        The worst of the groups for each metric, which is what every request is promised.
    """

    status: str
    objective_name: str
    replicas: tuple[ReplicaGroup, ...]
    gpus: Mapping[str, int]
    cost_per_hour: float | None
    power_w: float | None
    power_note: str
    quality: Prediction | None
    predicted: tuple[LatencyPrediction, ...]
    headroom: float | None
    objective: float | None
    bound: float | None
    gap: float | None
    solver: str
    solve_s: float
    provenance: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    warnings: tuple[str, ...] = ()
    reason: str | None = None
    constraint: str | None = None
    nearest: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data; ``predicted`` becomes a mapping by metric."""
        data = asdict(self)
        data["predicted"] = _by_metric(data["predicted"])
        for group, replicas in zip(data["replicas"], self.replicas, strict=True):
            group["predicted"] = _by_metric(group["predicted"])
            group["headroom"] = replicas.headroom
        lists = {key: list(value) for key, value in data.items() if isinstance(value, tuple)}
        return {"schema_version": SCHEMA_VERSION, **data, **lists}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what :meth:`to_json` wrote; an unknown schema version or a missing field is an :class:`InputError`."""
        fields = dict(data)
        version = fields.pop("schema_version", None)
        for beside in ("explanation", "verification"):  # told beside a plan, not part of it
            fields.pop(beside, None)
        if version != SCHEMA_VERSION:
            raise InputError(f"plan: schema_version is {version!r}; this qplan reads {SCHEMA_VERSION}")
        try:
            fields["replicas"] = tuple(_group(group) for group in fields["replicas"])
            fields["predicted"] = _latencies(fields["predicted"])
            fields["quality"] = Prediction(**fields["quality"]) if fields["quality"] else None
            fields["assumptions"] = tuple(Assumption(**assumption) for assumption in fields["assumptions"])
            for name in ("provenance", "warnings", "nearest"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise InputError(f"plan: not a plan of schema version {SCHEMA_VERSION}: {error}") from None


def _by_metric(predictions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key predictions by metric; one with several percentiles is keyed ``p90:ttft``, ``p99:ttft``."""
    names = [prediction["metric"] for prediction in predictions]
    return {
        f"p{one['percentile']:g}:{one['metric']}" if names.count(one["metric"]) > 1 else one["metric"]: {
            key: value for key, value in one.items() if key != "metric"
        }
        for one in predictions
    }


def _latencies(predicted: Mapping[str, Mapping[str, Any]]) -> tuple[LatencyPrediction, ...]:
    return tuple(LatencyPrediction(metric=key.split(":")[-1], **value) for key, value in predicted.items())


def _group(data: Mapping[str, Any]) -> ReplicaGroup:
    fields = {key: value for key, value in data.items() if key != "headroom"}
    fields["quality"] = Prediction(**fields["quality"])
    fields["predicted"] = _latencies(fields["predicted"])
    return ReplicaGroup(**fields)
