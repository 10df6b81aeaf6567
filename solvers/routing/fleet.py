"""What the models say of a fleet: what each group of replicas can serve, and what that takes in time and energy.

With ``n`` requests in flight on a replica, that each take ``L`` decode steps and a prefill of ``P`` seconds, all
advance together, and the prefills of those that follow come in between (the residence of processor sharing in
:mod:`qplan.models.sharing`)::

    R(n) = L step(n) + n P        TPOT(n) = R(n) / L        X(n) = n / R(n) requests/s

and its power is the energy of these iterations over their time. ``step``, ``P`` and the energies are read from the
same iteration grids and power curves that the simulator runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.demand import Demand, RequestClass
from qplan.core.errors import InputError
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.models.quality import quality
from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.fleetfile import Fleet, FleetFile, Group
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import simulate
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Bools, Floats, Ints
from qplan.solvers.routing.lengths import Lengths
from qplan.solvers.routing.work import Work

CURVE_POINTS = 24
SAMPLE = 3000
"""Requests by which the load limit of a replica is tried."""

_BISECTIONS = 9
_WARM_UP = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class GroupModel:
    """Equal replicas. B buckets, K classes, F numbers of requests in flight.

    Attributes
    ----------
    name
        Unique in the fleet.
    replica
        One of them, awake all the time.
    idle_w, asleep_w
        Watts of one, awake without requests and asleep.
    quality : (K,)
        NaN where a class may not run on it.
    in_flight, step_s, tpot_s, rate_qps, power_w : (F,)
        With so many requests of the demand's mix in flight: time of a decode iteration, mean TPOT, requests/s that are
        served, and watts.
    limit_qps
        Largest Poisson load of the mix at which one replica keeps all SLOs, simulated; 0 where it keeps them at none.
    time_s, energy_j : (B,)
        Of one request of a bucket at that load: its part of the busy time, and of the energy above idle.
    energy_among_j : (B, F)
        Energy above idle of a request among so many in flight.
    prefill_s_per_token, prefill_j_per_token
        Of a prompt token beside decoding sequences; the energy is above idle.
    """

    name: str
    group: Group
    replica: Replica
    idle_w: float
    asleep_w: float
    quality: Floats
    in_flight: Floats
    step_s: Floats
    tpot_s: Floats
    rate_qps: Floats
    power_w: Floats
    limit_qps: float
    time_s: Floats
    energy_j: Floats
    energy_among_j: Floats
    prefill_s_per_token: float
    prefill_j_per_token: float

    @property
    def count(self) -> int:
        """Replicas of the group."""
        return self.group.count

    @property
    def limit_w(self) -> float:
        """Watts of a replica at its load limit."""
        return float(np.interp(self.limit_qps, *self._points()))

    def hull(self) -> tuple[Floats, Floats]:
        """Return the lower convex hull of power over load from 0 to the limit: (N,) requests/s and (N,) watts."""
        rates, watts = self._points()
        inside = rates < self.limit_qps
        rates, watts = np.append(rates[inside], self.limit_qps), np.append(watts[inside], self.limit_w)
        kept: list[int] = []
        for n in range(len(rates)):
            while len(kept) > 1 and not _turns_up(rates, watts, kept[-2], kept[-1], n):
                kept.pop()
            kept.append(n)
        return rates[kept], watts[kept]

    @property
    def convex(self) -> bool:
        """Whether power over load is convex up to the limit, to a hundredth."""
        rates, watts = self._points()
        inside = rates <= self.limit_qps
        lowest = np.interp(rates[inside], *self.hull())
        return bool((watts[inside] <= 1.01 * lowest).all())

    def _points(self) -> tuple[Floats, Floats]:
        return np.append(0.0, self.rate_qps), np.append(self.idle_w, self.power_w)


@dataclass(frozen=True, slots=True, eq=False)
class FleetModel:
    """A fleet for a demand.

    Attributes
    ----------
    lengths
        The demand's requests by class and length.
    mean_quality : (K,)
        Floors on the mean quality of the classes; 0 without one.
    wake_s
        From the order to wake until a replica serves.
    """

    demand: Demand
    lengths: Lengths
    groups: tuple[GroupModel, ...]
    mean_quality: Floats
    wake_s: float
    provenance: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def limit_qps(self) -> float:
        """Requests/s of the mix that all replicas together serve at their load limits."""
        return float(sum(group.count * group.limit_qps for group in self.groups))

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All replicas, group by group."""
        return tuple(group.replica for group in self.groups for _ in range(group.count))

    @property
    def group_of(self) -> Ints:
        """The group of each replica, (R,)."""
        return np.repeat(np.arange(len(self.groups)), [group.count for group in self.groups])

    @property
    def able(self) -> Bools:
        """Whether a replica may serve the requests of a bucket, (B, R)."""
        grades = np.array([group.quality for group in self.groups])  # (G, K)
        able: Bools = np.isfinite(grades[self.group_of][:, self.lengths.request_class]).T
        return able


def model_fleet(file: FleetFile, fleet: Fleet, demand: Demand, *, sleep: bool = True, seed: int = 0) -> FleetModel:
    """Ask the models about a fleet.

    Parameters
    ----------
    file, fleet
        What was read, and what serves.
    demand
        Classes with their lengths, SLOs and floors on quality, and the time that a start takes.
    sleep
        Whether replicas may sleep; else an idle one is as one that sleeps.

    Raises
    ------
    InputError
        The fleet keeps prefill and decode apart, its power is not known, or a class may run on no group of it.
    """
    if file.transfer is not None:
        raise InputError("--fleet: it keeps prefill and decode apart; routing by energy expects replicas that do both")
    if fleet.power_note:
        raise InputError(f"--fleet: the power of some replica is unknown, and its energy with it: {fleet.power_note}")
    lengths = Lengths.of(demand)
    groups: list[GroupModel] = []
    at = 0
    for group in file.groups:
        replica = fleet.replicas[at]
        at += group.count
        grades = np.array([_quality(one, group) for one in demand.classes])
        name = _name(group, [one.name for one in groups])
        groups.append(_group_model(name, group, replica, grades, demand, lengths, sleep, seed))
    for k, one in enumerate(demand.classes):
        if not any(np.isfinite(group.quality[k]) and group.limit_qps > 0 for group in groups):
            raise InputError(
                f"class {one.name}: no replica of the fleet may serve it within its SLOs; it wants "
                f"{' or '.join(map(str, one.models))}, quality of {one.quality_floor:.1%}, {_said(one.slos)}"
            )
    return FleetModel(
        demand,
        lengths,
        tuple(groups),
        np.array([one.mean_quality or 0.0 for one in demand.classes]),
        demand.start_s,
        fleet.provenance,
        fleet.warnings,
    )


def _name(group: Group, taken: Sequence[str]) -> str:
    """Return a name that is short, plain and not yet taken."""
    deployment = group.deployment
    gpu = deployment.gpu.name.split("-")[0]
    name = f"{deployment.model}-{deployment.quantization}-{gpu}-tp{deployment.tp}".casefold()
    same = sum(one == name or one.rpartition("-no")[0] == name for one in taken)
    return f"{name}-no{same + 1}" if same else name


def at_16_bits(file: FleetFile, demand: Demand) -> tuple[FleetFile, Bools] | None:
    """Return the fleet on the same GPUs without quantization, as far as the models fit them.

    Returns
    -------
    tuple or None
        The fleet, and whether each replica has a model of each class, (K, R); ``None`` where a class has none.
    """
    plain = Quantization.parse("BF16")
    groups = [replace(group, deployment=replace(group.deployment, quantization=plain)) for group in file.groups]
    fits = tuple(group for group in groups if group.deployment.refusal() is None)
    models = [group.deployment.model.name for group in fits for _ in range(group.count)]
    able = np.array([[name in {model.name for model in one.models} for name in models] for one in demand.classes])
    return (replace(file, groups=fits), able) if able.size and able.any(axis=1).all() else None


def _said(slos: Sequence[Slo]) -> str:
    return ", ".join(map(str, slos)) or "no SLO"


def _quality(one: RequestClass, group: Group) -> float:
    """Return the quality of a group for a class; NaN where the class may not run on it."""
    deployment = group.deployment
    if all(deployment.model.name != model.name for model in one.models):
        return np.nan
    named = {str(each).replace("FP16", "BF16") for each in one.quantizations or ()}
    if named and str(deployment.quantization).replace("FP16", "BF16") not in named:
        return np.nan
    grade = quality(deployment.model.name, str(deployment.quantization), one.workload.task, one.models[0].name).value
    return grade if grade >= one.quality_floor - 1e-9 else np.nan


def _group_model(
    name: str,
    group: Group,
    replica: Replica,
    grades: Floats,
    demand: Demand,
    lengths: Lengths,
    sleep: bool,
    seed: int,
) -> GroupModel:
    assert replica.idle_w is not None
    work = Work.of(replica, lengths)
    most = min(replica.batching.max_sequences, int(replica.kv_tokens // lengths.mean_tokens))
    axis = np.unique(np.rint(np.geomspace(1, max(most, 2), CURVE_POINTS)))
    number = axis.astype(np.int64)
    step_s, prefill_s, energy_j = work.step_s[number], work.prefill_s(number), work.energy_j(number)
    steps = lengths.mean_steps
    residence_s = steps * step_s + axis * (prefill_s @ lengths.weight)
    rate_qps = np.maximum.accumulate(axis / residence_s)
    model = GroupModel(
        name=name,
        group=group,
        replica=replica,
        idle_w=replica.idle_w,
        asleep_w=min(replica.idle_w, (group.deployment.gpu.idle_w or 0.0) * group.deployment.tp)
        if sleep
        else replica.idle_w,
        quality=grades,
        in_flight=axis,
        step_s=step_s,
        tpot_s=residence_s / max(steps, 1.0),
        rate_qps=rate_qps,
        power_w=rate_qps * (energy_j @ lengths.weight),
        limit_qps=0.0,
        time_s=np.zeros(0),
        energy_j=np.zeros(0),
        energy_among_j=(energy_j - replica.idle_w * (prefill_s + lengths.steps * (step_s / axis)[:, None])).T.clip(0.0),
        prefill_s_per_token=0.0,
        prefill_j_per_token=0.0,
    )
    limit_qps = _limit_qps(replica, demand, lengths, np.isfinite(grades), float(rate_qps[-1]), seed)
    at = np.array([max(1, round(float(np.interp(limit_qps, rate_qps, axis))))])
    prefill, decode = work.prefill_s(at)[0], lengths.steps * work.step_s[at] / at
    time_s = prefill + decode
    energy = work.energy_j(at)[0] - replica.idle_w * time_s
    tokens = lengths.input_tokens
    return replace(
        model,
        limit_qps=limit_qps,
        time_s=time_s,
        energy_j=np.maximum(energy, 0.0),
        prefill_s_per_token=float((prefill @ lengths.weight) / (tokens @ lengths.weight)),
        prefill_j_per_token=float(
            max(work.prefill_j(at)[0] @ lengths.weight - replica.idle_w * (prefill @ lengths.weight), 0.0)
            / (tokens @ lengths.weight)
        ),
    )


def _limit_qps(replica: Replica, demand: Demand, lengths: Lengths, served: Bools, most_qps: float, seed: int) -> float:
    """Bisect, by simulation, for the largest load at which every class that a replica may serve keeps its SLOs."""
    traffic = lengths.draw(1.0, SAMPLE, seed)
    chosen = served[lengths.request_class[traffic.buckets]]
    if not chosen.any():
        return 0.0
    traffic = Traffic(
        traffic.arrivals_s[chosen], traffic.input_tokens[chosen], traffic.output_tokens[chosen], traffic.buckets[chosen]
    )

    def kept(rate_qps: float) -> bool:
        faster = replace(traffic, arrivals_s=traffic.arrivals_s / rate_qps)
        return all(
            share >= slo.percentile / 100 if slo.percentile else True
            for row, one in zip(attainment([replica], faster, demand, lengths), demand.classes, strict=True)
            for share, slo in zip(row, one.slos, strict=True)
        )

    low, high = 0.0, most_qps
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def attainment(fleet: Sequence[Replica], traffic: Traffic, demand: Demand, lengths: Lengths) -> list[list[float]]:
    """Return the share of each class's requests, after a warm-up, within each of its SLOs; 1 of none."""
    served = simulate(traffic, fleet, Dispatch.LEAST_OUTSTANDING)
    latency = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    counted = np.arange(len(traffic)) >= _WARM_UP * len(traffic)
    done = ~np.isnan(served.e2e_s)
    class_of = lengths.request_class[traffic.buckets]
    return [
        [
            float((done & ~(latency[slo.metric] > slo.threshold_s))[mine].mean()) if mine.any() else 1.0
            for slo in one.slos
        ]
        for k, one in enumerate(demand.classes)
        for mine in [counted & (class_of == k)]
    ]


def _turns_up(x: Floats, y: Floats, a: int, b: int, c: int) -> bool:
    """Say whether the line through three points, from left to right, turns up at the middle one."""
    return bool((y[b] - y[a]) * (x[c] - x[b]) < (y[c] - y[b]) * (x[b] - x[a]))
