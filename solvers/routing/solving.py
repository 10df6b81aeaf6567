"""From a fleet and a demand to a routing policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qplan.core.plan import Assumption
from qplan.core.policy import Policy, PolicyBucket, PolicyClass, PolicyGroup, PolicyLevel
from qplan.models.simulator.traffic import Traffic
from qplan.solvers.backends import open_backend
from qplan.solvers.routing.fleet import FleetModel, GroupModel
from qplan.solvers.routing.optimum import Optimum, greatest_load_qps, optima
from qplan.solvers.routing.pacing import paced
from qplan.solvers.routing.trying import Trial, with_margin, with_standby

LEVELS = 12
HOLD_S = 600.0
HEADROOM = 1.0
MISS = 1.0
"""Joules for exceeding an SLO by its whole, over those of the dearest request that is served alone."""

TRIED_REQUESTS = 4000


def solve_policy(
    model: FleetModel,
    *,
    solver: str = "highs",
    levels: int = LEVELS,
    deadlines_s: dict[str, float] | None = None,
    seen: Traffic | None = None,
    seed: int = 0,
) -> Policy:
    """Find the policy of a fleet: the optimum at `levels` loads, a margin and a standby that keep the SLOs.

    Classes that may wait are paced over the demand's periods (:mod:`qplan.solvers.routing.pacing`).

    Parameters
    ----------
    deadlines_s
        By class that may wait: within how long a request is to begin.
    seen
        Requests as they came at some time, with the model's buckets: the policy learns from them how they come in
        bursts. Without them arrivals are taken to be Poisson.

    Raises
    ------
    InfeasibleError
        The fleet can serve no share of the demand.
    """
    backend = open_backend(solver)
    greatest = greatest_load_qps(model, backend)
    low = levels // 4  # each at half the load of the next: at such loads replicas sleep
    first = greatest / (levels - low)
    loads = [first / 2**n for n in range(low, 0, -1)] + [first * (n + 1) for n in range(levels - low)]
    policy = _policy(model, optima(model, loads, backend), deadlines_s or {}, "Poisson" if seen is None else "as seen")
    came = model.lengths.draw(1.0, TRIED_REQUESTS, seed) if seen is None else seen.part(0, TRIED_REQUESTS)
    trial = Trial.of(model, came)
    return paced(trial, with_standby(trial, with_margin(trial, policy)), backend)


def _policy(model: FleetModel, found: tuple[Optimum, ...], deadlines_s: dict[str, float], arrivals: str) -> Policy:
    lengths = model.lengths
    wavy = [group.name for group in model.groups if not group.convex]
    assumptions = (
        Assumption("wake time", f"{model.wake_s:g} s", "start: {time: ...}"),
        Assumption(
            "power asleep", "the catalogue's of a GPU without a process, at most that of an idle replica", "--no-sleep"
        ),
        Assumption("arrivals", f"{arrivals}, in the demand's mix", "--trace"),
        *(one for one in model.demand.assumptions if one.what.startswith(("quality", "SLOs", "percentile"))),
        *((Assumption("power over load", f"lower convex hull, of {'; '.join(wavy)}", "profiles"),) if wavy else ()),
    )
    classes = tuple(
        PolicyClass(one.name, tuple(map(str, one.slos)), one.mean_quality, deadlines_s.get(one.name))
        for one in model.demand.classes
    )
    return Policy(
        name=model.demand.name,
        margin=1.0,
        miss_j=MISS * float(max(group.energy_among_j.max() for group in model.groups)),
        hold_s=HOLD_S,
        headroom=HEADROOM,
        classes=classes,
        buckets=tuple(
            PolicyBucket(
                lengths.names[lengths.request_class[b]],
                float(lengths.edges[b, 0]),
                float(lengths.edges[b, 1]) if np.isfinite(lengths.edges[b, 1]) else None,
                float(lengths.weight[b]),
                *(
                    float(column[b])
                    for column in (lengths.input_tokens, lengths.output_tokens, lengths.output_p50, lengths.output_p90)
                ),
            )
            for b in range(len(lengths))
        ),
        groups=tuple(_group(model, group, classes) for group in model.groups),
        levels=tuple(_level(model, one) for one in found),
        provenance=("simulated and modelled", *model.provenance),
        assumptions=assumptions,
        warnings=model.warnings,
    )


def _full_tpot_s(group: GroupModel, slo_s: float) -> float:
    """Return the mean TPOT at the load limit, or the SLO where that is less: no limit holds beyond it."""
    in_flight = np.interp(group.limit_qps, group.rate_qps, group.in_flight)
    return min(slo_s, float(np.interp(in_flight, group.in_flight, group.tpot_s)))


def _group(model: FleetModel, group: GroupModel, classes: Sequence[PolicyClass]) -> PolicyGroup:
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
        full_tpot_s=_full_tpot_s(group, min(one.threshold_s("tpot") for one in classes)),
        energy_j=tuple(group.energy_j.tolist()),
        energy_among_j=tuple(tuple(row) for row in group.energy_among_j.tolist()),
    )


def _level(model: FleetModel, found: Optimum) -> PolicyLevel:
    mean_j = [float(group.energy_j @ model.lengths.weight) for group in model.groups]
    return PolicyLevel(
        load_qps=found.load_qps,
        # What takes no less asleep stays awake.
        awake=tuple(
            int(up) if group.asleep_w < group.idle_w else group.count
            for up, group in zip(found.awake, model.groups, strict=True)
        ),
        shares=tuple(tuple(row) for row in found.shares.tolist()),
        power_w=found.power_w,
        bound_w=found.bound_w,
        quality_price=dict(zip(model.lengths.names, found.quality_price.tolist(), strict=True)),
        capacity_price=tuple(found.capacity_price.tolist()),
        spill=tuple(sorted(range(len(mean_j)), key=mean_j.__getitem__)),
        serving=tuple(_serving(model, found, g) for g in range(len(model.groups))),
    )


def _serving(model: FleetModel, found: Optimum, g: int) -> int:
    """Return how many replicas of a group its share takes at their load limit."""
    group = model.groups[g]
    load_qps = float(found.rate_qps[:, g] @ group.time_s / (group.time_s @ model.lengths.weight))
    return math.ceil(load_qps / group.limit_qps - 1e-6) if load_qps > 0 else 0


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
            full_tpot_s=one.full_tpot_s * time,
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
