"""The linear relaxation of a fleet problem over all its options, by prices.

The rows of :mod:`qplan.solvers.fleet.program` have prices: what serving a bucket in a period is worth, what a GPU of a
pool, a watt under the cap, a point of mean quality. At given prices every option stands alone: its replicas are worth,
in period h, ``max over b of (worth of b's requests - what serving them adds) / load``, and cost what they cost and the
prices of what they take. A fleet of an option is a pile of single replicas, each with its own periods on (where counts
rise, replicas start; where they fall, the oldest stop), so the option's *excess* is the least, over the patterns of
periods on, that one replica costs beyond its worth: a shortest path through on and off, start costs between.

- Lagrange: the prices' own value, plus ``most_replicas`` times every negative excess, is a bound for all fleets.
- Options with negative excess enter the linear program (column generation; Gilmore and Gomory 1961), until none is.
- At the end a fleet that uses any replica of an option costs at least the bound plus the option's excess, so
  options with an excess above what a known fleet costs more than the bound are in no better fleet (reduced costs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import MatrixProgram
from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.measures import Rates, per_gpu_held, per_replica, per_share, per_start, rates, weighted
from qplan.solvers.fleet.nodes import packing
from qplan.solvers.fleet.program import build

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.capacity.solve import Run
    from qplan.solvers.fleet.problem import FleetProblem

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

#: Options that enter at a time.
_ENTER = 24

#: Negative excess, relative to the bound, at which an option no longer enters.
_ENOUGH = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """What the rows of a fleet program are worth in the objective; a sense of scale where replicas come in fractions.

    Attributes
    ----------
    demand : ndarray of shape (B, H)
        Of all of a bucket's requests of a period.
    gpu : ndarray of shape (G,)
        Saved over the horizon by one more GPU of each pool's inventory; 0 where it does not bind.
    power : ndarray of shape (H,)
        Saved by one more watt under the cap.
    quality : ndarray of shape (K,)
        Saved by a mean-quality floor that is lower by 1.
    at_most : dict of str to float
        Saved by one more unit of each limited measure.
    excess : ndarray of shape (D,)
        What a fleet costs at least above `bound` for the first replica of an option; infinite for options without use.
    bound
        No fleet, whole or fractional, costs less.
    active : ndarray of int
        The options of the linear program that proved it.
    charged
        The rates of the objective and of the limited measures at their prices.
    share_worth : ndarray of shape (B, D)
        What the quality of a bucket's requests is worth, before their weight among all requests.
    rent : ndarray of shape (G, H)
        What a GPU of a pool is worth in each period, in committed pools too.
    net : ndarray of shape (D, H)
        What a replica costs beyond its worth in each period, without starts; infinite for options without use.
    value : ndarray of shape (H,)
        What the prices prove of each period by itself; `rest` is what they prove beside.
    """

    demand: Floats
    gpu: Floats
    power: Floats
    quality: Floats
    at_most: dict[str, float]
    excess: Floats
    bound: float
    active: Indices
    charged: Rates
    share_worth: Floats
    rent: Floats
    net: Floats
    value: Floats
    rest: float


def relax(problem: FleetProblem, kept: Indices, run: Run) -> Prices | None:
    """Return prices that prove the linear relaxation's optimum over the options `kept`, or as far as time allows.

    None if the demand cannot be carried even by fractions of replicas, or if time was up before any prices.
    """
    if ((problem.rate_qps > 0).any(1) & ~problem.eligible[:, kept].any(1)).any():
        return None
    active = _first(problem, kept)
    shortage = _dear(problem, kept)
    best: Prices | None = None
    while run.left_s > 0:
        program = build(problem, active)
        charged = program.charges(weighted(problem, problem.objective))
        matrix = replace(program.matrix, cost=charged)
        answer = run.backend.solve(_dual(program, matrix, shortage), time_limit_s=run.left_s, mip_gap=0.0)
        if answer.values is None or answer.status != "optimal":
            return best
        prices = _priced(program, answer.values[: len(matrix.row_lower)], kept)
        if best is None or prices.bound > best.bound:
            best = prices
        entering = kept[prices.excess[kept] < -_ENOUGH * max(abs(prices.bound), 1e-3)]
        entering = np.setdiff1d(entering, active)
        if not entering.size:
            if (prices.demand < shortage * (1 - 1e-6)).all():
                return best
            if shortage > 1e6 * _dear(problem, kept):
                return None
            shortage *= 100.0
            continue
        order = np.argsort(prices.excess[entering], kind="stable")
        active = np.union1d(active, entering[order[:_ENTER]])
    return best


def _first(problem: FleetProblem, kept: Indices) -> Indices:
    """Return the option that serves each bucket for the least, in the busiest period and the quietest."""
    charged = weighted(problem, problem.objective)
    replica = per_replica(problem, charged) + _held_by_replica(problem, charged)
    chosen = set()
    total = problem.rate_qps.sum(0)
    busiest = int(total.argmax())
    quietest = int(np.where(total > 0, total, np.inf).argmin())
    for h in {busiest, quietest}:
        load = problem.load(h)[:, kept]
        spent = np.where(load > 0, load * replica[kept, h] + per_share(problem, charged, h)[:, kept], np.inf)
        for pool in np.unique(problem.pool[kept]):
            there = np.flatnonzero(problem.pool[kept] == pool)
            best = there[spent[:, there].argmin(1)]
            chosen |= set(kept[best[np.isfinite(spent[np.arange(len(best)), best])]].tolist())
    return np.array(sorted(chosen), np.int64)


def _dear(problem: FleetProblem, kept: Indices) -> float:
    """Return a first price of leaving a bucket unserved: what the dearest option for it costs, a hundred times."""
    charged = weighted(problem, problem.objective)
    replica = per_replica(problem, charged) + _held_by_replica(problem, charged)
    dearest = 0.0
    for h in range(len(problem.hours)):
        load = problem.load(h)[:, kept]
        dearest = max(dearest, float((load * replica[kept, h] + per_share(problem, charged, h)[:, kept]).max()))
    return 100.0 * dearest + 1.0


def _held_by_replica(problem: FleetProblem, charged: Rates) -> Floats:
    """Return what the GPUs of one replica cost where pools or nodes are paid for, as a rule of thumb. Shape (D, H)."""
    apart = problem.committed | (problem.node_gpus > 1)
    return np.asarray((per_gpu_held(problem, charged) * apart[:, None])[problem.pool] * problem.gpus[:, None])


def _dual(program: FleetProgram, matrix: MatrixProgram, shortage: float) -> MatrixProgram:
    """Return the dual of the relaxation in which demand may go unserved at a price, to be minimised.

    Its first R columns are the prices of the rows. Rows are of one sign or equalities, columns at least 0; their
    upper bounds follow from the rows or are left out, which only lowers the bound.
    """
    rows, columns = len(matrix.row_lower), len(matrix.cost)
    side = np.where(np.isfinite(matrix.row_lower), matrix.row_lower, matrix.row_upper)
    lower = np.where(np.isfinite(matrix.row_upper), -np.inf, 0.0)
    upper = np.where(np.isfinite(matrix.row_lower), np.inf, 0.0)
    demand = program.rows["demand"]
    upper[demand[demand >= 0]] = shortage
    empty = np.empty(0)
    dual = MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
    dual = dual.with_columns([f"price {i}" for i in range(rows)])
    dual = replace(dual, lower=lower, upper=upper, cost=-side)
    row_of = np.repeat(np.arange(rows), np.diff(matrix.indptr))
    return dual.with_rows(matrix.indices, row_of, matrix.data, np.full(columns, -np.inf), matrix.cost)


def _priced(program: FleetProgram, dual: Floats, kept: Indices) -> Prices:
    """Read a dual solution, and price all options `kept` by it."""
    problem, rows = program.problem, program.rows
    demand = np.where(rows["demand"] >= 0, dual[rows["demand"]], 0.0)
    charged = weighted(problem, problem.objective)
    multipliers = {}
    for name, limit in problem.at_most.items():
        size = max(limit, 1e-9) if name != "quality" else 1.0
        multipliers[name] = float(-dual[rows[f"at_most {name}"][0]]) / size
        if name != "quality":
            charged += rates(problem, name) * multipliers[name]
    unpowered = charged
    power, value = np.zeros(len(problem.hours)), demand.sum(0)
    if "power" in rows:
        watts = problem.power_cap_w
        kwh = -dual[rows["power"]] / (watts * problem.hours / 1000.0)
        charged += Rates(np.zeros(problem.gpu_price.shape), kwh, 0.0)
        power = kwh * problem.hours / 1000.0
        value += dual[rows["power"]]
    floors = np.zeros(len(problem.classes))
    if "quality" in rows:
        floors = np.where(rows["quality"] >= 0, dual[rows["quality"]], 0.0)

    share = _quality_worth(problem, floors, multipliers.get("quality", 0.0))
    replica = per_replica(problem, charged)
    gpu, rent = np.zeros(len(problem.pools)), np.zeros(problem.gpu_price.shape)
    for g in range(len(problem.pools)):
        everyone = np.flatnonzero((problem.pool == g) & problem.eligible.any(0))
        if not everyone.size:
            continue
        limiting = f"bought {g}" if problem.committed[g] else f"inventory {g}"
        if limiting in rows:
            gpu[g] = -dual[rows[limiting]].sum() / problem.node_gpus[g]
        if f"inventory {g}" in rows:
            rent[g] = -dual[rows[f"inventory {g}"]] / problem.node_gpus[g]
            if not problem.committed[g]:
                value -= rent[g] * problem.node_gpus[g] * (problem.inventory[g] // problem.node_gpus[g])
        pack = packing(problem.gpus[everyone], int(problem.node_gpus[g]))
        if f"fit {g}" in rows:
            replica[everyone] -= pack.weight[:, None] * dual[rows[f"fit {g}"]][pack.row]
        else:
            replica[everyone] += problem.gpus[everyone, None] * rent[g]

    worth = np.zeros(replica.shape)
    requests = problem.requests / max(problem.requests.sum(), 1e-300)
    for h in range(len(problem.hours)):
        load = problem.load(h)[:, kept]
        gain = demand[:, [h]] + requests[:, [h]] * share[:, kept] - per_share(problem, charged, h)[:, kept]
        worth[kept, h] = np.divide(gain, load, out=np.zeros(load.shape), where=load > 0).max(0, initial=0.0)
    excess = np.full(len(problem.options), np.inf)
    starts = per_start(problem, charged)[kept] if _starts(problem) else None
    net = np.full(replica.shape, np.inf)
    net[kept] = (replica - worth)[kept]
    excess[kept] = cheapest_pattern(net[kept], starts, cyclic=problem.cyclic)
    most = problem.most_replicas
    side = np.where(np.isfinite(program.matrix.row_lower), program.matrix.row_lower, program.matrix.row_upper)
    proven = float(dual @ side)
    return Prices(
        demand=demand,
        gpu=gpu,
        power=power,
        quality=floors * [requests[problem.bucket_class == k].sum() for k in range(len(floors))],
        at_most=multipliers,
        excess=excess,
        bound=proven + float((most[kept] * np.minimum(excess[kept], 0.0)).sum()),
        active=program.kept,
        charged=unpowered,
        share_worth=share,
        rent=rent,
        net=net,
        value=value,
        rest=proven - float(value.sum()),
    )


def _starts(problem: FleetProblem) -> bool:
    return not problem.cyclic or len(problem.hours) > 1


def _quality_worth(problem: FleetProblem, floors: Floats, overall: float) -> Floats:
    """Return what the quality of a bucket's requests is worth, before their weight among all. Shape (B, D)."""
    above_floor = problem.quality - problem.mean_quality[problem.bucket_class][:, None]
    above_limit = problem.quality - problem.at_most.get("quality", 0.0)
    return np.asarray(floors[problem.bucket_class][:, None] * above_floor + overall * above_limit)


def cheapest_pattern(net: Floats, start: Floats | None, *, cyclic: bool) -> Floats:
    """Return the least that one replica adds in its periods on, starts included; it is on at least once.

    Parameters
    ----------
    net : ndarray of shape (D, H)
        What being on in a period adds, below 0 where it is worth more than it costs.
    start : ndarray of shape (D, H), or None
        What a start for a period adds, at least 0; None where replicas never start.

    Returns
    -------
    ndarray of shape (D,)
    """
    if start is None:
        return np.asarray(net.sum(1))
    never_off = net.sum(1) + (0.0 if cyclic else start[:, 0])
    best = never_off
    # From off to off again: never on so far, on, off again. A horizon that repeats may also begin and end on.
    for begins_on in (False, True) if cyclic else (False,):
        infinite = np.full(len(net), np.inf)
        off, on, back = infinite if begins_on else np.zeros(len(net)), infinite, infinite
        if begins_on:
            on = np.zeros(len(net))
        for h in range(net.shape[1]):
            on, back = np.minimum(on, np.minimum(off, back) + start[:, h]) + net[:, h], np.minimum(back, on)
        best = np.minimum(best, on if begins_on else np.minimum(on, back))
    return np.asarray(best)
