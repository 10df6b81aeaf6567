"""From a fleet and a demand to a routing policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qplan.core.plan import Assumption
from qplan.core.policy import Policy, PolicyBucket, PolicyClass, PolicyGroup, PolicyLevel
from qplan.models.simulator.dispatch import Dispatch, Routing
from qplan.models.simulator.simulation import simulate
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats
from qplan.solvers.backends import open_backend
from qplan.solvers.routing.compiled import ruled
from qplan.solvers.routing.fleet import FleetModel, GroupModel
from qplan.solvers.routing.optimum import Optimum, greatest_load_qps, optima

LEVELS = 12
HOLD_S = 120.0
HEADROOM = 3.0
MISS = 1.0
"""Joules for exceeding an SLO by its whole, over those of the dearest request that is served alone."""

MARGINS = tuple(round(1.1**n, 3) for n in range(12))
"""Factors on predicted latencies, of which the least is taken with which the policy keeps what is wanted."""

TRIED_LOADS = (0.15, 0.3, 0.5)
TRIED_REQUESTS = 3000
LIKE_OTHERS = 0.99
"""The policy is to keep each SLO as often as least requests does, up to this share of the requests."""


def solve_policy(
    model: FleetModel,
    *,
    solver: str = "highs",
    levels: int = LEVELS,
    deadlines_s: dict[str, float] | None = None,
    seed: int = 0,
) -> Policy:
    """Find the policy of a fleet: the optimum at `levels` loads, and margins that keep the SLOs.

    Parameters
    ----------
    deadlines_s
        By class that may wait: within how long a request is to begin.

    Raises
    ------
    InfeasibleError
        The fleet can serve no share of the demand.
    """
    backend = open_backend(solver)
    greatest = greatest_load_qps(model, backend)
    found = optima(model, [greatest * (n + 1) / levels for n in range(levels)], backend)
    policy = _policy(model, found, deadlines_s or {})
    margins = [_margin(model, policy, greatest * load, seed + n) for n, load in enumerate(TRIED_LOADS)]
    return replace(policy, margin=max(margins))


def _policy(model: FleetModel, found: tuple[Optimum, ...], deadlines_s: dict[str, float]) -> Policy:
    lengths = model.lengths
    wavy = [group.name for group in model.groups if not group.convex]
    assumptions = (
        Assumption("wake time", f"{model.wake_s:g} s", "start: {time: ...}"),
        Assumption(
            "power asleep", "the catalogue's of a GPU without a process, at most that of an idle replica", "--no-sleep"
        ),
        Assumption("arrivals", "Poisson, in the demand's mix", "demand"),
        *((Assumption("power over load", f"lower convex hull, of {'; '.join(wavy)}", "profiles"),) if wavy else ()),
    )
    return Policy(
        name=model.demand.name,
        margin=1.0,
        miss_j=MISS * float(max(group.energy_among_j.max() for group in model.groups)),
        hold_s=HOLD_S,
        headroom=HEADROOM,
        classes=tuple(
            PolicyClass(one.name, tuple(map(str, one.slos)), one.mean_quality, deadlines_s.get(one.name))
            for one in model.demand.classes
        ),
        buckets=tuple(
            PolicyBucket(
                lengths.names[lengths.request_class[b]],
                float(lengths.edges[b, 0]),
                float(lengths.edges[b, 1]) if np.isfinite(lengths.edges[b, 1]) else None,
                float(lengths.weight[b] / lengths.class_share[lengths.request_class[b]]),
                *(
                    float(column[b])
                    for column in (lengths.input_tokens, lengths.output_tokens, lengths.output_p50, lengths.output_p90)
                ),
            )
            for b in range(len(lengths))
        ),
        groups=tuple(_group(model, group) for group in model.groups),
        levels=tuple(_level(model, one) for one in found),
        provenance=("simulated and modelled", *model.provenance),
        assumptions=assumptions,
        warnings=model.warnings,
    )


def _group(model: FleetModel, group: GroupModel) -> PolicyGroup:
    deployment, replica = group.group.deployment, group.replica
    names = model.lengths.names
    return PolicyGroup(
        name=group.name,
        model=deployment.model.name,
        quantization=str(deployment.quantization),
        gpu=deployment.gpu.name,
        tp=deployment.tp,
        engine=deployment.engine,
        engine_version=deployment.engine_version,
        count=group.count,
        kv_tokens=float(replica.kv_tokens),
        max_sequences=replica.batching.max_sequences,
        idle_w=group.idle_w,
        asleep_w=group.asleep_w,
        wake_s=model.wake_s,
        quality={name: float(one) for name, one in zip(names, group.quality, strict=True) if np.isfinite(one)},
        prefill_s_per_token=group.prefill_s_per_token,
        prefill_j_per_token=group.prefill_j_per_token,
        in_flight=tuple(group.in_flight.tolist()),
        step_s=tuple(group.step_s.tolist()),
        tpot_s=tuple(group.tpot_s.tolist()),
        energy_j=tuple(group.energy_j.tolist()),
        energy_among_j=tuple(tuple(row) for row in group.energy_among_j.tolist()),
    )


def _level(model: FleetModel, found: Optimum) -> PolicyLevel:
    mean_j = [float(group.energy_j @ model.lengths.weight) for group in model.groups]
    return PolicyLevel(
        load_qps=found.load_qps,
        awake=tuple(found.awake.tolist()),
        shares=tuple(tuple(row) for row in found.shares.tolist()),
        power_w=found.power_w,
        bound_w=found.bound_w,
        quality_price=dict(zip(model.lengths.names, found.quality_price.tolist(), strict=True)),
        capacity_price=tuple(found.capacity_price.tolist()),
        spill=tuple(sorted(range(len(mean_j)), key=mean_j.__getitem__)),
    )


def misled(policy: Policy, *, times: float = 1.0, lengths: float = 1.0, energies: float = 1.0) -> Policy:
    """Return the policy as if its models were wrong: by so many times, in every other group the inverse.

    Parameters
    ----------
    times, energies
        Factors on predicted latencies and energies of the first, third ... group; the others get the inverse, so that
        the order of the groups is wrong too.
    lengths
        Factor on expected output lengths.
    """

    def group(n: int, one: PolicyGroup) -> PolicyGroup:
        time, energy = (factor if n % 2 == 0 else 1 / factor for factor in (times, energies))
        return replace(
            one,
            prefill_s_per_token=one.prefill_s_per_token * time,
            step_s=tuple(value * time for value in one.step_s),
            tpot_s=tuple(value * time for value in one.tpot_s),
            energy_j=tuple(value * energy for value in one.energy_j),
            energy_among_j=tuple(tuple(value * energy for value in row) for row in one.energy_among_j),
        )

    buckets = tuple(
        replace(
            one,
            output_tokens=one.output_tokens * lengths,
            output_p50=one.output_p50 * lengths,
            output_p90=one.output_p90 * lengths,
        )
        for one in policy.buckets
    )
    return replace(policy, buckets=buckets, groups=tuple(group(n, one) for n, one in enumerate(policy.groups)))


def _margin(model: FleetModel, policy: Policy, load_qps: float, seed: int) -> float:
    """Return the least margin with which the policy keeps what is wanted at a load, or the one that comes nearest."""
    traffic = model.lengths.draw(load_qps, TRIED_REQUESTS, seed)
    others = _kept(model, traffic, Dispatch.LEAST_OUTSTANDING)
    wanted = np.array([slo.percentile or 0.0 for one in model.demand.classes for slo in one.slos] or [0.0]) / 100
    wanted = np.maximum(wanted, np.minimum(others, LIKE_OTHERS))
    best, most = MARGINS[0], -np.inf
    for margin in MARGINS:
        short = (_kept(model, traffic, ruled(replace(policy, margin=margin))) - wanted).min()
        if short > most:
            best, most = margin, short
        if short >= 0:
            break
    return best


def _kept(model: FleetModel, traffic: Traffic, dispatch: Routing) -> Floats:
    """Return the share of requests within each SLO of each class, all awake."""
    served = simulate(traffic, model.replicas, dispatch)
    latency = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    done, class_of = ~np.isnan(served.e2e_s), model.lengths.request_class[traffic.buckets]
    return np.array(
        [
            (done & ~(latency[slo.metric] > slo.threshold_s))[class_of == k].mean() if (class_of == k).any() else 1.0
            for k, one in enumerate(model.demand.classes)
            for slo in one.slos
        ]
        or [1.0]
    )
