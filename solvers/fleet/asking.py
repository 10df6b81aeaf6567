"""From a demand to a fleet problem: what each deployment on each pool carries, burns and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qplan.core.demand import Demand, Pool
from qplan.core.deployment import Deployment
from qplan.core.errors import InfeasibleError
from qplan.core.gpu import Gpu
from qplan.core.slo import Slo
from qplan.models.power.energy import energy
from qplan.models.quality import Quality
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Bools, Floats, Ints, StepTimes
from qplan.solvers.fleet.buckets import Bucket, Buckets, cuts, worthwhile
from qplan.solvers.fleet.confidence import tightened
from qplan.solvers.fleet.eligible import Eligible, eligible, refusal
from qplan.solvers.fleet.mixing import modes
from qplan.solvers.fleet.problem import FleetProblem

#: Share of its limit at which the joules of a request are taken: plans load their replicas about that far.
_BUSY = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A demand as arrays, and what names their rows: K classes, B buckets, D options, G pools, H periods.

    Attributes
    ----------
    pools : (G,)
    deployments, steps, provenance : (D,)
        Of each option.
    grades : (K, D)
        Quality; ``None`` where an option does not serve a class.
    confidence
        With which SLOs and floors on quality are to hold; ``None`` where they are planned by the predictions.
    limits : (K,)
        The SLOs that predictions must keep: tighter than the demand's where there is a confidence.
    energy_note
        Why the power of some options is unknown; empty where all is known.
    rejected
        How many deployments cannot serve, by class and reason.
    """

    demand: Demand
    problem: FleetProblem
    buckets: Buckets
    pools: tuple[Pool, ...]
    deployments: tuple[Deployment, ...]
    steps: StepTimes
    provenance: tuple[str, ...]
    grades: tuple[tuple[Quality | None, ...], ...]
    confidence: float | None
    limits: tuple[tuple[Slo, ...], ...]
    known_error: Mapping[str, Any] | None
    energy_note: str
    rejected: Mapping[str, int]

    def saturation_qps(self, index: int) -> Floats:
        """Return the rate of a class alone that fills one replica of each option, (D,); 0 where it cannot serve all."""
        mine = self.buckets.of_class(index)
        capacity = self.problem.capacity_qps[mine]
        able = (capacity > 0).all(axis=0)
        busy = self.buckets.weight[mine] @ (1 / np.where(capacity > 0, capacity, 1.0))
        return np.where(able, 1 / busy, 0.0)

    def idle_w(self, option: int) -> float | None:
        """Return the watts of a replica without load; ``None`` where unknown."""
        return float(self.problem.idle_w[option]) or None

    def scaled(self, factor: float) -> Asked:
        """Return the same question about `factor` times the requests."""
        problem = replace(self.problem, rate_qps=self.problem.rate_qps * factor)
        return replace(self, demand=self.demand.scaled(factor), problem=problem)

    def with_capacity(self, capacity_qps: Floats) -> Asked:
        """Return the same question with other capacities, (B, D): what a verification tightens."""
        return replace(self, problem=replace(self.problem, capacity_qps=capacity_qps))


def ask_fleet(demand: Demand, *, confidence: float | None = None, needs_power: bool = False) -> Asked:
    """State `demand` over the profiles' deployments.

    Parameters
    ----------
    confidence
        Plan so that SLOs and floors on quality hold with this probability, given how far predictions were from real
        serving; by the predictions themselves if ``None``.
    needs_power
        Leave out what has no known power even where the demand does not depend on it.

    Raises
    ------
    InputError
        When the profiles hold nothing of what is asked for, or their error is needed and unknown.
    InfeasibleError
        When some class has no deployment at all.
    """
    found = eligible(demand, confidence)
    limits = tuple(
        one.slos if confidence is None else tightened(one.slos, found.known_error, confidence) for one in demand.classes
    )
    pools = demand.pools or _pools_of_all(demand, found.deployments)
    served = _Served.of(demand, found, limits, _least_price(demand, found, pools))
    usable = served.power_known[served.base] | (not (needs_power or _needs_energy(demand)))
    if not usable.any():
        raise InfeasibleError(
            f"no deployment has a known power: {served.energy_note}",
            constraint="power",
            nearest=("a demand without a power cap, an energy price and an objective on energy or carbon",),
        )
    mode, pool = _options([found.deployments[d] for d in served.base], usable, pools)
    base = served.base[mode]
    deployments = tuple(found.deployments[d] for d in base)
    here = np.array([one.availability for one in pools])[pool]
    rates = np.array([one.rate_qps for one in demand.classes])
    buckets = served.buckets
    problem = FleetProblem(
        classes=tuple(one.name for one in demand.classes),
        options=_names(demand, deployments, [pools[g] for g in pool], [served.classes[m] for m in mode]),
        pools=tuple(one.name for one in pools),
        bucket_class=buckets.request_class,
        hours=np.array(demand.hours),
        rate_qps=buckets.weight[:, None] * rates[buckets.request_class],
        capacity_qps=served.capacity_qps[:, mode] * here,
        pool=pool,
        gpus=np.array([one.tp for one in deployments]),
        gpu_price=np.array([one.price_per_gpu_hour for one in pools]),
        committed=np.array([one.committed for one in pools]),
        inventory=np.array([one.count for one in pools]),
        node_gpus=np.array([one.node_gpus for one in pools]),
        idle_w=served.idle_w[base],
        dynamic_j=served.dynamic_j[:, base],
        energy_price=np.array(demand.energy_price),
        carbon=np.array(demand.carbon),
        power_cap_w=demand.power_cap_w,
        start_s=np.full(len(base), demand.start_s),
        start_cost=np.full(len(base), demand.start_cost),
        quality=found.quality[buckets.request_class][:, base],
        mean_quality=np.array([one.mean_quality or 0.0 for one in demand.classes]),
        spare=demand.spare,
        objective=demand.objective,
        then=demand.then,
        at_most=demand.at_most,
    )
    return Asked(
        demand=demand,
        problem=problem,
        buckets=buckets,
        pools=pools,
        deployments=deployments,
        steps=found.steps.take(base),
        provenance=tuple(found.provenance[d] for d in base),
        grades=tuple(
            tuple(row[d] if k in served.classes[m] else None for d, m in zip(base, mode, strict=True))
            for k, row in enumerate(found.grades)
        ),
        confidence=confidence,
        limits=limits,
        known_error=found.known_error,
        energy_note=served.energy_note,
        rejected=found.rejected,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """What each of D distinct deployments does for each bucket, wherever it is bought, in each of O modes.

    Attributes
    ----------
    base, classes : (O,)
        The deployment of each mode, and the classes that it serves.
    capacity_qps : (B, O)
        0 where it does not serve the bucket.
    dynamic_j : (B, D)
    idle_w, power_known : (D,)
    """

    buckets: Buckets
    base: Ints
    classes: tuple[tuple[int, ...], ...]
    capacity_qps: Floats
    dynamic_j: Floats
    idle_w: Floats
    power_known: Bools
    energy_note: str

    @classmethod
    def of(cls, demand: Demand, found: Eligible, limits: Sequence[Sequence[Slo]], price: Floats) -> _Served:
        """Cut the classes where it pays at that `price`, (D,), of a replica, and find what each deployment carries."""
        count = len(found.deployments)
        cut: list[tuple[Bucket, ...]] = []
        rows: list[Floats] = []  # capacity and joules of each bucket
        idle, reasons = np.full(count, np.nan), {}
        for k, one in enumerate(demand.classes):
            at = np.flatnonzero(found.admitted[k])
            deployments, steps = [found.deployments[d] for d in at], found.steps.take(at)
            model = SharingModel.of(deployments, steps)
            ways = cuts(one.workload)
            capacities = [np.stack([model.saturation_qps(bucket.mix, limits[k]) for bucket in way]) for way in ways]
            weights = [np.array([bucket.weight for bucket in way]) for way in ways]
            if not any((capacity > 0).any(axis=1).all() for capacity in capacities):
                raise refusal(demand, k, limits[k])
            chosen = worthwhile(weights, capacities, price[at])
            cut.append(ways[chosen])
            for bucket, capacity in zip(ways[chosen], capacities[chosen], strict=True):
                rate = capacity * _BUSY
                burned = energy(deployments, steps, bucket.mix, rate, model.at(bucket.mix, rate))
                joules = np.divide(burned.power_w - burned.idle_w, rate, out=np.zeros(len(at)), where=rate > 0)
                row = np.zeros((2, count))
                row[:, at] = capacity, np.maximum(np.nan_to_num(joules), 0.0)
                rows.append(row)
                idle[at] = np.fmax(idle[at], burned.idle_w)
                reasons.update(
                    dict.fromkeys(
                        reason for reason, able in zip(burned.reasons, rate > 0, strict=True) if reason and able
                    )
                )
        capacity_qps, dynamic = np.stack(rows, axis=1)
        buckets = Buckets.of(cut)
        mixed = modes(
            found.deployments,
            found.steps,
            buckets,
            [one.workload for one in demand.classes],
            limits,
            capacity_qps,
        )
        return cls(
            buckets,
            mixed.base,
            mixed.classes,
            mixed.capacity_qps,
            dynamic,
            np.nan_to_num(idle),
            ~np.isnan(idle),
            "; ".join(reasons),
        )


def _options(modes_of: Sequence[Deployment], usable: Bools, pools: Sequence[Pool]) -> tuple[Ints, Ints]:
    """Return mode and pool of each option, (D,): every usable mode's deployment on every pool that holds a replica."""
    places = [
        (m, g)
        for g, pool in enumerate(pools)
        for m, one in enumerate(modes_of)
        if usable[m]
        and one.gpu.name == pool.gpu.name
        and one.tp <= pool.count
        and (pool.node_gpus == 1 or one.tp <= pool.node_gpus)
    ]
    table = np.array(places, dtype=np.intp).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _least_price(demand: Demand, found: Eligible, pools: Sequence[Pool]) -> Floats:
    """Return what a replica of each deployment costs on its cheapest pool, in $/h or in GPUs, (D,)."""
    gpus = np.array([one.tp for one in found.deployments], dtype=float)
    if demand.objective[0][0] == "gpus":
        return gpus
    cheapest = {pool.gpu.name: np.inf for pool in pools}
    for pool in pools:
        price = float(np.mean(pool.price_per_gpu_hour)) / pool.availability
        cheapest[pool.gpu.name] = min(cheapest[pool.gpu.name], price)
    prices: Floats = gpus * np.array([cheapest[one.gpu.name] for one in found.deployments])
    return prices


def _pools_of_all(demand: Demand, deployments: Sequence[Deployment]) -> tuple[Pool, ...]:
    gpus: dict[str, Gpu] = {one.gpu.name: one.gpu for one in deployments}
    prices = {name: demand.prices.get(name, gpu.price_per_hour) for name, gpu in gpus.items()}
    return tuple(Pool(name, gpus[name], np.inf, (prices[name],) * len(demand.hours)) for name in sorted(gpus))


def _names(
    demand: Demand, deployments: Sequence[Deployment], pools: Sequence[Pool], classes: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """Name options so that no two are called the same, and no more is said than that needs."""
    names = [
        one.name if pool.name == one.gpu.name else f"{one.name} [{pool.name}]"
        for one, pool in zip(deployments, pools, strict=True)
    ]
    versions = [f" {one.engine} {one.engine_version}" for one in deployments]
    served = [" for " + " + ".join(demand.classes[k].name for k in group) for group in classes]
    for more in (versions, served):
        texts = {name: {end for other, end in zip(names, more, strict=True) if other == name} for name in set(names)}
        names = [f"{name}{end if len(texts[name]) > 1 else ''}" for name, end in zip(names, more, strict=True)]
    return tuple(names)


def _needs_energy(demand: Demand) -> bool:
    """Whether the plan depends on what the replicas burn."""
    asked = {*(name for name, weight in demand.objective if weight), *demand.then, *demand.at_most}
    return bool(asked & {"energy", "carbon"}) or any(demand.energy_price) or np.isfinite(demand.power_cap_w)
