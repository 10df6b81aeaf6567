"""Fleet plans: which replicas run in each period, who serves what, what it costs, and what was proven about it.

A plan is plain data that becomes JSON and comes back. ``schema_version`` rises when a field changes meaning or goes;
``kind`` tells it from the plan of one rate (:mod:`qplan.core.plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qplan.core.errors import InputError
from qplan.core.plan import Assumption, LatencyPrediction, Prediction

SCHEMA_VERSION = 1
KIND = "fleet-plan"


@dataclass(frozen=True, slots=True)
class PlannedBucket:
    """Requests of a class that are of about one length: the unit that is routed.

    Attributes
    ----------
    weight
        Share of the class's requests.
    """

    request_class: str
    input_tokens: float
    output_tokens: float
    weight: float


@dataclass(frozen=True, slots=True)
class PlannedOption:
    """A deployment on a pool of GPUs, as far as the plan uses it.

    Attributes
    ----------
    name
        Unique in the plan; groups refer to it.
    quality
        By request class, as a fraction of the class's reference model at 16 bits.
    saturation_qps
        By request class: the rate of that class alone that one replica takes within its SLOs; 0 where it does not
        serve the class.
    idle_w
        Watts of a replica without load; ``None`` where unknown.
    """

    name: str
    model: str
    quantization: str
    gpu: str
    tp: int
    engine: str
    engine_version: str
    pool: str
    quality: Mapping[str, Prediction]
    saturation_qps: Mapping[str, float]
    idle_w: float | None
    provenance: str


@dataclass(frozen=True, slots=True)
class ClassLatency:
    """What one class is predicted to see on a group in a period.

    Attributes
    ----------
    attainment
        Predicted share of requests within each SLO, the least over the SLOs; 1 where there is none.
    """

    attainment: float
    predicted: tuple[LatencyPrediction, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Equal replicas in one period.

    Attributes
    ----------
    option
        Name of a :class:`PlannedOption`.
    starts
        Replicas that come up at the beginning of this period.
    cost
        US dollars in this period: GPUs (without what is committed), starts and electricity.
    load_qps, utilisation
        Requests/s of one replica, and the share of its limit that they take.
    power_w
        Mean watts of the whole group; ``None`` where unknown.
    shares : (B,)
        Share of each bucket's requests that the group serves.
    latency
        By request class that it serves.
    """

    option: str
    count: int
    starts: int
    cost: float
    load_qps: float
    utilisation: float
    power_w: float | None
    shares: tuple[float, ...]
    latency: Mapping[str, ClassLatency]


@dataclass(frozen=True, slots=True)
class Period:
    """One period of the horizon.

    Attributes
    ----------
    start_h, hours
        When it begins, in hours from the horizon's start, and its length.
    rate_qps
        Requests/s by class.
    gpus
        GPUs in use by pool.
    """

    start_h: float
    hours: float
    rate_qps: Mapping[str, float]
    gpus: Mapping[str, int]
    groups: tuple[Group, ...]
    power_w: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What the plan takes over the horizon.

    Attributes
    ----------
    cost
        US dollars, electricity included where it has a price.
    energy_kwh, carbon_kg
        GPUs alone, at the power predicted for the load that each group gets; ``None`` where unknown.
    gpu_hours
        GPUs that are paid for, times hours.
    quality
        By class: mean over its requests.
    attainment
        By class: predicted share of requests within the SLOs.
    """

    cost: float
    energy_kwh: float | None
    carbon_kg: float | None
    gpu_hours: float
    quality: Mapping[str, Prediction]
    attainment: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """An answer to a :class:`~qplan.core.demand.Demand`.

    Attributes
    ----------
    status
        ``optimal`` (proven), ``feasible`` (gap stated) or ``infeasible`` (`reason`, `constraint` and `nearest` say
        why).
    hours
        Length of the horizon.
    bought
        GPUs of each committed pool.
    totals
        ``None`` where there is no fleet.
    objective_name, objective, bound, gap
        What was minimised, its value as the solver counts it, the proven lower bound and the relative distance.
    energy_note
        What the energy stands on, or why it is unknown.
    verification
        What a simulation of the plan found (as plain data); ``None`` while none has run.
    """

    status: str
    name: str
    hours: float
    buckets: tuple[PlannedBucket, ...]
    options: tuple[PlannedOption, ...]
    periods: tuple[Period, ...]
    bought: Mapping[str, int]
    totals: Totals | None
    objective_name: str
    objective: float | None
    bound: float | None
    gap: float | None
    solver: str
    solve_s: float
    energy_note: str
    provenance: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    warnings: tuple[str, ...] = ()
    reason: str | None = None
    constraint: str | None = None
    nearest: tuple[str, ...] = ()
    verification: Mapping[str, Any] | None = None

    def option(self, name: str) -> PlannedOption:
        """Return the option of that name."""
        return next(option for option in self.options if option.name == name)

    @property
    def most_gpus(self) -> Mapping[str, int]:
        """GPUs of each pool in the period that uses most of it."""
        pools = dict.fromkeys(pool for period in self.periods for pool in period.gpus)
        return {pool: max(period.gpus.get(pool, 0) for period in self.periods) for pool in pools}

    @property
    def measures(self) -> dict[str, float | None]:
        """What the plan takes, by the names of :data:`~qplan.core.demand.MEASURES`, and its mean quality.

        ``None`` where there is no fleet, or it is unknown.
        """
        totals = self.totals
        if totals is None:
            return dict.fromkeys(("cost", "gpus", "energy", "carbon", "quality"))
        requests = {
            name: sum(period.hours * period.rate_qps[name] for period in self.periods) for name in totals.quality
        }
        quality = sum(requests[name] * one.value for name, one in totals.quality.items()) / sum(requests.values())
        return {
            "cost": totals.cost,
            "gpus": totals.gpu_hours,
            "energy": totals.energy_kwh,
            "carbon": totals.carbon_kg,
            "quality": quality,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {"schema_version": SCHEMA_VERSION, "kind": KIND, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FleetPlan:
        """Read what :meth:`to_json` wrote; another kind or schema version, or a missing field, is an InputError."""
        fields = dict(data)
        version, kind = fields.pop("schema_version", None), fields.pop("kind", None)
        fields.pop("explanation", None)  # told beside a plan, not part of it
        if (kind, version) != (KIND, SCHEMA_VERSION):
            raise InputError(f"plan: a {kind!r} of schema_version {version!r}; this reads {KIND!r} of {SCHEMA_VERSION}")
        try:
            fields["buckets"] = tuple(PlannedBucket(**bucket) for bucket in fields["buckets"])
            fields["options"] = tuple(_option(option) for option in fields["options"])
            fields["periods"] = tuple(_period(period) for period in fields["periods"])
            fields["totals"] = None if fields["totals"] is None else _totals(fields["totals"])
            fields["assumptions"] = tuple(Assumption(**one) for one in fields["assumptions"])
            for name in ("provenance", "warnings", "nearest"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"plan: not a {KIND} of schema version {SCHEMA_VERSION}: {error}") from None


def _plain(value: Any) -> Any:
    """Return `value` with tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _option(data: Mapping[str, Any]) -> PlannedOption:
    return PlannedOption(**{**data, "quality": _predictions(data["quality"])})


def _predictions(data: Mapping[str, Any]) -> dict[str, Prediction]:
    return {name: Prediction(**one) for name, one in data.items()}


def _totals(data: Mapping[str, Any]) -> Totals:
    return Totals(**{**data, "quality": _predictions(data["quality"])})


def _period(data: Mapping[str, Any]) -> Period:
    return Period(**{**data, "groups": tuple(_group(group) for group in data["groups"])})


def _group(data: Mapping[str, Any]) -> Group:
    latency = {
        name: ClassLatency(
            one["attainment"], tuple(LatencyPrediction(**_unbounded(latency)) for latency in one["predicted"])
        )
        for name, one in data["latency"].items()
    }
    return Group(**{**data, "shares": tuple(data["shares"]), "latency": latency})


def _unbounded(latency: Mapping[str, Any]) -> dict[str, Any]:
    """Return a latency that is infinite where JSON could only say null."""
    ends = {name: float("inf") if latency[name] is None else latency[name] for name in ("value", "lower", "upper")}
    return {**latency, **ends}
