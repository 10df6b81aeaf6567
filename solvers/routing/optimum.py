"""The least power at which a fleet serves a load: which replicas are awake, and who serves what.

A mixed-integer program over the rate ``x`` (B, G) of each bucket on each group, the replicas ``a`` (G,) that are awake,
and the power ``w`` (G,) of each group::

    minimise    sum of w + asleep_w (count - a)
    subject to  sum over groups of x = rate of the bucket
                load by time of x  <=  limit_qps a             a replica keeps its SLOs
                w >= slope (load by energy of x) + offset a    for each segment of the lower hull of power over load
                sum of (quality - floor) x >= 0                for each class with a floor on the mean

The load of a group in requests/s of the mix counts each bucket by the time, or the energy, of its requests over that
of the mean request. Power over load is not convex (a replica that is hardly used reads its weights for few), so the
lower convex hull stands for it: what the groups of a large fleet reach together, and a lower bound for a single
replica. Of a group, ``a`` times the hull at ``1/a`` of the load is again linear in both, which makes the program
linear.

Prices are differences between optima: of a class's floor lowered by a thousandth, of one more replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.errors import InfeasibleError
from qplan.models.steptimes import Floats, Ints
from qplan.solvers.backends import MatrixProgram, SolverBackend
from qplan.solvers.routing.fleet import FleetModel

GAP = 1e-4
TIME_LIMIT_S = 20.0
_LOWER = 1e-3  # of a floor on quality


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """The optimum at one load. B buckets, G groups, K classes.

    Attributes
    ----------
    load_qps
        Requests/s of the mix.
    awake : (G,)
    rate_qps : (B, G)
    power_w, bound_w
        Of the whole fleet, and its proven lower bound, both on the hulls.
    quality_price : (K,)
        Joules that one request's quality costs; 0 where the floor does not bind.
    capacity_price : (G,)
        Watts that one more replica saves.
    """

    load_qps: float
    awake: Ints
    rate_qps: Floats
    power_w: float
    bound_w: float
    quality_price: Floats
    capacity_price: Floats

    @property
    def shares(self) -> Floats:
        """Share of each bucket's requests that each group serves, (B, G)."""
        total = self.rate_qps.sum(axis=1, keepdims=True)
        share: Floats = np.divide(self.rate_qps, total, out=np.zeros_like(self.rate_qps), where=total > 0)
        return share


def optima(model: FleetModel, loads_qps: Sequence[float], backend: SolverBackend) -> tuple[Optimum, ...]:
    """Solve for each load.

    Raises
    ------
    InfeasibleError
        The fleet cannot serve one of the loads within the SLOs and the floors on quality.
    """
    return tuple(_priced(model, load, backend) for load in loads_qps)


def greatest_load_qps(model: FleetModel, backend: SolverBackend) -> float:
    """Return the largest load of the mix that the fleet serves within the SLOs and the floors on quality."""
    low, high = 0.0, model.limit_qps
    if _solved(model, high, backend) is not None:
        return high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _solved(model, middle, backend) is not None else (low, middle)
    if low <= 0:
        raise InfeasibleError(
            "no share of the demand can be served: the floors on mean quality and the SLOs leave no replica",
            constraint="quality",
            nearest=("a lower mean_quality", "looser SLOs", "replicas of finer quantization"),
        )
    return low


def _priced(model: FleetModel, load_qps: float, backend: SolverBackend) -> Optimum:
    found = _solved(model, load_qps, backend)
    if found is None:
        raise InfeasibleError(
            f"the fleet cannot serve {load_qps:.3g} req/s within its SLOs and floors on quality",
            constraint="capacity",
            nearest=("more replicas", "looser SLOs", "a lower mean_quality"),
        )
    awake, rate, power, bound = found
    quality = np.zeros(len(model.mean_quality))
    for k in np.flatnonzero(model.mean_quality):
        lowered = model.mean_quality.copy()
        lowered[k] -= _LOWER
        served = load_qps * model.lengths.class_share[k]
        cheaper = _solved(model, load_qps, backend, floors=lowered, awake=awake)
        if cheaper is not None:
            quality[k] = max(power - cheaper[2], 0.0) / (_LOWER * served)
    counts = np.array([group.count for group in model.groups])
    more = [
        _solved(model, load_qps, backend, counts=counts + (np.arange(len(counts)) == g)) for g in range(len(counts))
    ]
    asleep = np.array([group.asleep_w for group in model.groups])
    # One more replica that only sleeps adds what it takes asleep.
    capacity = np.array([max(power + asleep[g] - one[2], 0.0) if one else 0.0 for g, one in enumerate(more)])
    return Optimum(load_qps, awake, rate, power, bound, quality, capacity)


def _solved(
    model: FleetModel,
    load_qps: float,
    backend: SolverBackend,
    *,
    floors: Floats | None = None,
    counts: Ints | None = None,
    awake: Ints | None = None,
) -> tuple[Ints, Floats, float, float] | None:
    """Return replicas awake, rates, power and its bound; ``None`` where the load cannot be served."""
    floors = model.mean_quality if floors is None else floors
    counts = np.array([group.count for group in model.groups]) if counts is None else counts
    program, constant_w = _program(model, load_qps, floors, counts, awake)
    solution = backend.solve(program, time_limit_s=TIME_LIMIT_S, mip_gap=GAP)
    if solution.values is None or solution.objective is None:
        return None
    groups, buckets = len(model.groups), len(model.lengths)
    rate = solution.values[: buckets * groups].reshape(buckets, groups)
    up = np.rint(solution.values[buckets * groups : (buckets + 1) * groups]).astype(np.int64)
    bound = solution.objective if solution.bound is None else solution.bound
    return up, rate, solution.objective + constant_w, bound + constant_w


def _program(
    model: FleetModel, load_qps: float, floors: Floats, counts: Ints, awake: Ints | None
) -> tuple[MatrixProgram, float]:
    lengths, groups = model.lengths, model.groups
    B, G = len(lengths), len(groups)
    rates = load_qps * lengths.weight
    x = np.arange(B * G).reshape(B, G)
    a, w = B * G + np.arange(G), B * G + G + np.arange(G)
    able = np.array([[np.isfinite(g.quality[k]) and g.limit_qps > 0 for g in groups] for k in lengths.request_class])
    program = MatrixProgram(np.empty(0), np.empty(0), np.empty(0), np.empty(0, bool), ())
    program = program.with_columns(
        [f"rate {b} {g}" for b in range(B) for g in range(G)], upper=np.where(able, rates[:, None], 0.0).ravel()
    )
    least = np.zeros(G) if awake is None else awake
    most = counts if awake is None else awake
    program = program.with_columns([f"awake {g}" for g in range(G)], upper=most.astype(float), integer=True)
    program = program.with_bounds(a, least.astype(float), most.astype(float))
    program = program.with_columns([f"power {g}" for g in range(G)])
    program = program.with_rows(np.repeat(np.arange(B), G), x.ravel(), np.ones(B * G), rates, rates)
    for g, group in enumerate(groups):
        if group.limit_qps <= 0:
            program = program.with_bounds([w[g]], [0.0], [np.inf]).with_row(
                [w[g], a[g]], [1.0, -group.idle_w], lower=0.0
            )
            continue
        by_time = group.time_s / (group.time_s @ lengths.weight)
        by_energy = group.energy_j / (group.energy_j @ lengths.weight)
        program = program.with_row([*x[:, g], a[g]], [*by_time, -group.limit_qps], upper=0.0)
        load, watts = group.hull()
        for n in range(len(load) - 1):
            slope = (watts[n + 1] - watts[n]) / (load[n + 1] - load[n])
            offset = watts[n] - slope * load[n]
            program = program.with_row([w[g], *x[:, g], a[g]], [1.0, *(-slope * by_energy), -offset], lower=0.0)
    for k in np.flatnonzero(floors):
        mine = np.flatnonzero(lengths.request_class == k)
        above = np.array([np.nan_to_num(group.quality[k] - floors[k]) for group in groups])
        program = program.with_row(x[mine].ravel(), np.tile(above, len(mine)), lower=0.0)
    asleep = np.array([group.asleep_w for group in groups])
    program = program.with_cost(np.concatenate([w, a]), np.concatenate([np.ones(G), -asleep]))
    return program, float(asleep @ counts)
