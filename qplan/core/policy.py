"""Routing policies: which replica of a fleet serves a request, and which replicas sleep at which load.

A policy is plain data that becomes JSON and comes back; ``schema_version`` rises when a field changes meaning or goes.
It holds no code: the rule that reads it is :mod:`qplan.solvers.routing.online`, in the simulator and before live
replicas alike. Energy, latency and quality in it are predictions of the models; the observed latencies correct them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from qplan.core.errors import InputError
from qplan.core.plan import Assumption
from qplan.core.slo import Slo

SCHEMA_VERSION = 1
KIND = "routing-policy"


@dataclass(frozen=True, slots=True)
class PolicyClass:
    """Requests of one kind and what they are promised.

    Attributes
    ----------
    slos
        In the grammar of :class:`qplan.core.slo.Slo`, each with its percentile.
    quality_floor
        Least mean quality over all requests of the class, as a fraction of the reference at 16 bits; ``None``: none.
    deadline_s
        Of a class that may wait: seconds from arrival within which it is to begin; ``None``: it is interactive.
    waits : (N, 2)
        Of such a class: what comes at the first of two times of the policy's horizon waits for the second, in seconds;
        linear from one pair to the next. Nothing: it waits for a replica with room alone.
    """

    name: str
    slos: tuple[str, ...]
    quality_floor: float | None = None
    deadline_s: float | None = None
    waits: tuple[tuple[float, float], ...] = ()

    def threshold_s(self, metric: str) -> float:
        """Return the tightest threshold on a metric in seconds; infinite without one."""
        slos = (Slo.parse(text, self.name) for text in self.slos)
        return min((slo.threshold_s for slo in slos if slo.metric == metric), default=float("inf"))


@dataclass(frozen=True, slots=True)
class PolicyBucket:
    """Requests of a class with prompts of about one length: all that a router can tell of one that arrives.

    Attributes
    ----------
    input_tokens_from, input_tokens_to
        Prompts from the first up to, and without, the second; ``None``: without end.
    weight
        Share of all requests.
    input_tokens, output_tokens
        Means.
    output_p50, output_p90
        Quantiles of the output length, by which one is guessed that nobody knows yet.
    """

    request_class: str
    input_tokens_from: float
    input_tokens_to: float | None
    weight: float
    input_tokens: float
    output_tokens: float
    output_p50: float
    output_p90: float


@dataclass(frozen=True, slots=True)
class PolicyGroup:
    """Equal replicas, and what the models say of one of them. F loads, B buckets.

    Attributes
    ----------
    name
        Unique in the policy.
    kv_tokens, max_sequences
        What a replica holds at once.
    idle_w, asleep_w
        Watts of a replica that is awake and serves nothing, and of one that sleeps; ``None`` where unknown.
    wake_s
        Seconds from the order to wake until it serves.
    quality
        By class, as a fraction of the reference at 16 bits; a class that is not there may not be served here.
    prefill_s_per_token, prefill_j_per_token
        Time and energy of a prompt token; the energy is above idle.
    in_flight : (F,)
        Requests in flight on one replica, rising from 1: where `step_s` and `tpot_s` are told; linear in between.
    step_s : (F,)
        Time of an iteration that decodes so many sequences.
    tpot_s : (F,)
        Mean TPOT with so many in flight, the prefills of the requests that follow counted in.
    full_tpot_s
        Mean TPOT at the load limit, beyond which a replica does not keep the SLOs.
    energy_j : (B,)
        Energy above idle of a request of a bucket among as many as the SLOs allow: what one more takes in the long run.
    energy_among_j : (B, F)
        The same among so many in flight; the fewer there are, the fewer share what reading the weights takes.
    """

    name: str
    model: str
    quantization: str
    gpu: str
    tp: int
    engine: str
    engine_version: str
    count: int
    kv_tokens: float
    max_sequences: int
    idle_w: float | None
    asleep_w: float | None
    wake_s: float
    quality: Mapping[str, float]
    prefill_s_per_token: float
    prefill_j_per_token: float
    in_flight: tuple[float, ...]
    step_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    full_tpot_s: float
    energy_j: tuple[float, ...]
    energy_among_j: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class PolicyLevel:
    """The optimum at one load of the whole fleet. G groups, B buckets.

    Attributes
    ----------
    load_qps
        Requests/s of all classes, in the demand's mix.
    awake : (G,)
        Replicas of each group that are awake.
    shares : (B, G)
        Share of each bucket that each group serves.
    power_w
        Mean watts of the fleet, those asleep included, at its least; ``None`` where unknown.
    bound_w
        Proven lower bound of it.
    quality_price
        By class: joules that one request's quality, from 0 to 1, costs at the margin.
    capacity_price : (G,)
        Watts that one more replica of the group would save.
    spill : (G,)
        Groups by rising energy of the mix: where requests go in turn, as those before are full.
    serving : (G,)
        Replicas of each group that suffice for its share within the SLOs.
    """

    load_qps: float
    awake: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    power_w: float | None
    bound_w: float | None
    quality_price: Mapping[str, float]
    capacity_price: tuple[float, ...]
    spill: tuple[int, ...]
    serving: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PolicyStandby:
    """What stays awake for bursts, which are there before a replica wakes.

    Attributes
    ----------
    load_qps
        Mean over an hour, in requests/s of the demand's mix, up to which these suffice.
    awake : (G,)
        Replicas of each group that never sleep at such a load.
    """

    load_qps: float
    awake: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a fleet routes.

    Attributes
    ----------
    margin
        Factor from a predicted latency to the one that is kept as often as is wanted.
    miss_j
        Joules that are spent rather than that a latency exceeds, with its margin, its SLO once more by its whole.
    hold_s
        For so long a replica stays awake after the load for which it is needed.
    headroom
        Replicas are kept awake for so many times the load that is seen.
    levels
        By rising load; the last is all that the fleet serves within the SLOs.
    standby
        By rising load; beyond the last all stay awake. Empty: replicas sleep by the load of the moment alone.
    horizon_s
        After which the times of classes that may wait repeat.
    """

    name: str
    margin: float
    miss_j: float
    hold_s: float
    headroom: float
    classes: tuple[PolicyClass, ...]
    buckets: tuple[PolicyBucket, ...]
    groups: tuple[PolicyGroup, ...]
    levels: tuple[PolicyLevel, ...]
    standby: tuple[PolicyStandby, ...] = ()
    horizon_s: float = 0.0
    provenance: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.classes and self.buckets and self.groups and self.levels):
            raise InputError(f"policy {self.name}: it has no class, bucket, group or level")
        names = {one.name for one in self.classes}
        for bucket in self.buckets:
            if bucket.request_class not in names:
                raise InputError(f"policy {self.name}: a bucket of the unknown class '{bucket.request_class}'")
        for group in self.groups:
            for name in ("energy_j", "energy_among_j"):
                if len(getattr(group, name)) != len(self.buckets):
                    raise InputError(
                        f"policy {self.name}: {group.name} has {name} of {len(getattr(group, name))} buckets; "
                        f"expected {len(self.buckets)}"
                    )
            axes = {len(axis) for axis in (group.in_flight, group.step_s, group.tpot_s, *group.energy_among_j)}
            if len(axes) > 1 or 0 in axes:
                raise InputError(
                    f"policy {self.name}: {group.name} has times or energies at other loads than in_flight"
                )
            if group.count < 1:
                raise InputError(f"policy {self.name}: {group.name} has {group.count} replicas; expected at least 1")
        for level in self.levels:
            if any(len(row) != len(self.groups) for row in (level.awake, level.serving, *level.shares)):
                raise InputError(f"policy {self.name}: the level {level.load_qps:g} req/s is for other groups")
        if any(after.load_qps <= before.load_qps for before, after in pairwise(self.levels)):
            raise InputError(f"policy {self.name}: the loads of its levels do not rise")
        if any(len(one.awake) != len(self.groups) for one in self.standby):
            raise InputError(f"policy {self.name}: what stands by is of other groups")
        if any(after.load_qps <= before.load_qps for before, after in pairwise(self.standby)):
            raise InputError(f"policy {self.name}: the loads for which replicas stand by do not rise")
        for one in self.classes:
            times = [at_s for at_s, _ in one.waits]
            longest_s = one.deadline_s or 0.0
            if times and not (
                times == sorted(times)
                and (times[0], times[-1]) == (0.0, self.horizon_s)
                and all(0 <= wait_s <= longest_s for _, wait_s in one.waits)
            ):
                raise InputError(
                    f"policy {self.name}: waits of {one.name} are for times that rise from 0 to its horizon of "
                    f"{self.horizon_s:g} s, and none is longer than the deadline of {longest_s:g} s"
                )

    @property
    def group_of(self) -> tuple[int, ...]:
        """The group of each replica, (R,): all replicas of the first group, then those of the second ..."""
        return tuple(g for g, group in enumerate(self.groups) for _ in range(group.count))

    @property
    def class_weight(self) -> Mapping[str, float]:
        """Share of all requests that each class has."""
        return {
            one.name: sum(bucket.weight for bucket in self.buckets if bucket.request_class == one.name)
            for one in self.classes
        }

    def class_named(self, name: str) -> PolicyClass:
        """Return the class of that name."""
        return next(one for one in self.classes if one.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON-ready data."""
        return {"schema_version": SCHEMA_VERSION, "kind": KIND, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "policy") -> Policy:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        InputError
            It is of another kind or schema version, or a field is missing, unknown or not what is expected.
        """
        fields = dict(data)
        version, kind = fields.pop("schema_version", None), fields.pop("kind", None)
        if (kind, version) != (KIND, SCHEMA_VERSION):
            found = f"kind {kind!r} of schema_version {version!r}"
            raise InputError(
                f"{where}: found {found}; expected {KIND!r} of {SCHEMA_VERSION}, as qplan route solve writes"
            )
        try:
            fields["classes"] = tuple(PolicyClass(**_tuples(one)) for one in fields["classes"])
            fields["buckets"] = tuple(PolicyBucket(**one) for one in fields["buckets"])
            fields["groups"] = tuple(PolicyGroup(**_tuples(one)) for one in fields["groups"])
            fields["levels"] = tuple(PolicyLevel(**_tuples(one)) for one in fields["levels"])
            fields["standby"] = tuple(PolicyStandby(**_tuples(one)) for one in fields.get("standby", ()))
            fields["assumptions"] = tuple(Assumption(**one) for one in fields.get("assumptions", ()))
            for name in ("provenance", "warnings"):
                fields[name] = tuple(fields.get(name, ()))
            policy = cls(**fields)
            for one in policy.classes:
                Slo.parse_all(one.slos, f"{where}, class {one.name}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not a {KIND} of schema version {SCHEMA_VERSION}: {error}") from None
        return policy


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with lists, and lists of lists, as tuples."""
    return {
        key: tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if isinstance(value, list)
        else value
        for key, value in data.items()
    }


def _plain(value: Any) -> Any:
    """Return `value` with tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
