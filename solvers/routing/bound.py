"""What no router can go below: the least energy of a trace that is known beforehand, lengths and all.

Whatever a router does, a fleet runs iterations, each with ``p`` prompt tokens and ``n`` decoding sequences of mean
context ``c`` on a replica of a group ``g``, and these iterations do all the work of all requests. Forget when requests
come, who shares a batch with whom, and that a replica takes time to wake; let it sleep whenever nothing runs. What is
left is a linear program over the number ``y`` of iterations of each kind and the share ``x`` of each request on each
group::

    minimise    sum of (energy - asleep_w time) y  +  asleep_w replicas horizon
    subject to  on each group, by the requests it serves and by its iterations, the same number of
                  prompt tokens, tokens decoded, and KV tokens read
                sum of time y <= replicas horizon
                sum of time n y <= SLO on TPOT x tokens decoded
                every request served, the floors on mean quality kept

Energy and time of an iteration are multilinear between the points of the grid, so iterations *at* the points suffice:
any other is a mix of them with the same work, time and energy. Each router's run is a feasible point, so the optimum is
a lower bound for all of them, as long as the mean TPOT over their tokens is within the SLO; a run within its SLOs is.

It is solved as its dual, in prices of a prompt token, a decoded token and a KV token on each group, and of a second of
a replica, for buckets of requests; then each single request is charged the cheapest group at these prices. Prices that
are a little off give a bound that is a little lower, never one that does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.simulator.replica import Replica
from qplan.models.simulator.tables import stacked
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats, Ints
from qplan.solvers.backends import MatrixProgram, SolverBackend
from qplan.solvers.routing.fleet import FleetModel

KINDS = 40
"""Buckets of requests, by prompt and by output, in which prices are sought."""

_TIME_LIMIT_S = 60.0
_SLACK = 1e-9  # by which prices are lowered, that rounding in the solver does not count


@dataclass(frozen=True, slots=True, eq=False)
class _Iterations:
    """Iterations of a group at V points of its grid; all are (V,)."""

    prefill: Floats
    decoding: Floats
    kv_tokens: Floats
    time_s: Floats
    energy_j: Floats

    @classmethod
    def of(cls, replica: Replica, longest: float) -> _Iterations:
        """Take the points that a replica can come between, for sequences of up to `longest` tokens."""
        (tokens, contexts, times, energies), _ = stacked([replica])
        p_axis, times, energies = _reaching(
            tokens[0], float(replica.batching.max_batched_tokens), times[0], energies[0], 0
        )
        c_axis, times, energies = _reaching(contexts[0], longest, times, energies, 2)
        most = replica.batching.max_sequences
        n_axis = np.unique(np.append(replica.times.batches[replica.times.batches < most], most)).astype(np.int64)
        before_n, before_c = np.append(0, n_axis[:-1]), np.append(0.0, c_axis[:-1])
        p, n, c = np.meshgrid(np.arange(len(p_axis)), np.arange(len(n_axis)), np.arange(len(c_axis)), indexing="ij")
        # No iteration lies near a point whose neighbours below hold more than the KV cache.
        kept = (before_n[n] * before_c[c] < replica.kv_tokens) & ((p > 0) | (n_axis[n] > 0))
        p, n, c = p[kept], n[kept], c[kept]
        return cls(
            p_axis[p],
            n_axis[n].astype(float),
            n_axis[n] * c_axis[c],
            times[p, n_axis[n], c],
            energies[p, n_axis[n], c],
        )


def clairvoyant(model: FleetModel, traffic: Traffic, classes: Ints, horizon_s: float, backend: SolverBackend) -> float:
    """Return the least energy, in joules, of all replicas with which all of `traffic` is served within `horizon_s`.

    Parameters
    ----------
    classes : (N,)
        Class of each request.
    """
    given, steps = traffic.input_tokens.astype(float), np.maximum(traffic.output_tokens - 1.0, 0.0)
    read = steps * given + steps * (steps - 1) / 2
    work = np.column_stack([given, steps, read])
    groups = [
        _Iterations.of(group.replica, float((traffic.input_tokens + traffic.output_tokens).max()))
        for group in model.groups
    ]
    tpot_s = min(
        (slo.threshold_s for one in model.demand.classes for slo in one.slos if slo.metric == "tpot"), default=np.inf
    )
    quality = np.array([group.quality for group in model.groups]).T[classes]  # (N, G)
    above = np.where(np.isfinite(quality), quality - model.mean_quality[classes][:, None], -np.inf)
    cell = _cells(classes, given, steps)
    count = np.bincount(cell).astype(float)
    mean = np.column_stack([np.bincount(cell, weights=column) / count for column in work.T])
    class_of = np.zeros(len(count), np.int64)
    class_of[cell] = classes
    kind_above = np.zeros((len(count), len(groups)))
    kind_above[cell] = above
    prices = _prices(model, groups, mean, count, class_of, kind_above, horizon_s, tpot_s, backend)
    token_j, second_w, tpot_w, quality_j = prices
    cost = work @ token_j.T - quality_j[classes][:, None] * np.where(np.isfinite(above), above, 0.0)
    cost = np.where(np.isfinite(above), cost, np.inf)
    counts = np.array([group.count for group in model.groups])
    asleep = np.array([group.asleep_w for group in model.groups])
    total = float(cost.min(axis=1).sum() + (asleep - second_w) @ counts * horizon_s)
    if np.isfinite(tpot_s):
        total -= tpot_w * tpot_s * float(steps.sum())
    return total


def _prices(
    model: FleetModel,
    groups: list[_Iterations],
    mean: Floats,
    count: Floats,
    class_of: Ints,
    above: Floats,
    horizon_s: float,
    tpot_s: float,
    backend: SolverBackend,
) -> tuple[Floats, Floats, float, Floats]:
    """Return the prices of work (G, 3), of a replica's seconds (G,), of sequence-seconds, and of quality (K,)."""
    number, kinds, classes = len(groups), len(count), len(model.mean_quality)
    size = np.maximum((mean * count[:, None]).sum(axis=0), 1.0)  # so that all prices are of one order
    columns = np.arange(3 * number).reshape(number, 3)
    second, tpot = 3 * number + np.arange(number), 4 * number
    quality, least = tpot + 1 + np.arange(classes), tpot + 1 + classes + np.arange(kinds)
    program = MatrixProgram(np.empty(0), np.empty(0), np.empty(0), np.empty(0, bool), ())
    program = program.with_columns([f"price {n}" for n in range(3 * number)])
    program = program.with_columns([f"second {n}" for n in range(number)])
    program = program.with_columns(["tpot"], upper=np.inf if np.isfinite(tpot_s) else 0.0)
    program = program.with_columns(
        [f"quality {k}" for k in range(classes)], upper=np.where(model.mean_quality > 0, np.inf, 0.0)
    )
    program = program.with_columns([f"least {n}" for n in range(kinds)], lower=-np.inf)
    total = float(count @ np.max(np.where(np.isfinite(above), 1.0, 0.0), axis=1))
    for g, (one, group) in enumerate(zip(groups, model.groups, strict=True)):
        work = np.column_stack([one.prefill, one.decoding, one.kv_tokens]) / size
        scale = 1.0 / np.maximum(np.abs(work).max(axis=1), 1e-12)
        rows = len(work)
        at = np.repeat(np.arange(rows), 5)
        which = np.tile([*columns[g], second[g], tpot], rows)
        values = np.column_stack([work, -one.time_s, -one.time_s * one.decoding]) * scale[:, None]
        limit = (one.energy_j - group.asleep_w * one.time_s) * (1 - _SLACK) * scale
        program = program.with_rows(at, which, values.ravel(), np.full(rows, -np.inf), limit)
        able = np.flatnonzero(np.isfinite(above[:, g]))
        at = np.repeat(np.arange(len(able)), 5)
        which = np.column_stack([np.tile(columns[g], (len(able), 1)), quality[class_of[able]], least[able]])
        values = np.column_stack([-mean[able] / size, above[able, g], np.ones(len(able))])
        program = program.with_rows(at, which.ravel(), values.ravel(), np.full(len(able), -np.inf), np.zeros(len(able)))
    seconds = np.array([group.count for group in model.groups]) * horizon_s
    steps = float((mean[:, 1] * count).sum())
    program = program.with_cost(
        np.concatenate([second, [tpot], least]),
        np.concatenate([seconds, [tpot_s * steps if np.isfinite(tpot_s) else 0.0], -count]) / total,
    )
    solution = backend.solve(program, time_limit_s=_TIME_LIMIT_S, mip_gap=0.0)
    if solution.values is None:
        return np.zeros((number, 3)), np.zeros(number), 0.0, np.zeros(classes)
    values = np.maximum(solution.values, 0.0)
    return values[columns] / size, values[second], float(values[tpot]), values[quality]


def _cells(classes: Ints, given: Floats, steps: Floats) -> Ints:
    """Return the kind of each request: class, and equal parts by prompt and by output."""
    parts = int(np.sqrt(KINDS))
    keys = classes * parts * parts + _parts(given, parts) * parts + _parts(steps, parts)
    cells: Ints = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return cells


def _parts(values: Floats, parts: int) -> Ints:
    edges = np.quantile(values, np.arange(1, parts) / parts)
    return np.searchsorted(edges, values, side="right")


def _reaching(axis: Floats, end: float, times: Floats, energies: Floats, along: int) -> tuple[Floats, Floats, Floats]:
    """Prolong the last segment of an axis, and of tables along it, to `end`; what lies beyond it stays."""
    if axis[-1] >= end:
        return axis, times, energies
    factor = (end - axis[-1]) / (axis[-1] - axis[-2])
    longer = []
    for table in (times, energies):
        last, before = np.take(table, [-1], along), np.take(table, [-2], along)
        longer.append(np.concatenate([table, last + factor * (last - before)], axis=along))
    return np.append(axis, end), longer[0], longer[1]
