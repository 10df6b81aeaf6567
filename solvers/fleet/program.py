"""The matrix program of a fleet by period.

The formulation is that of Mélange (arXiv 2404.14527, its integer linear program: buckets of request sizes, loads that
add up on a replica, the fewest dollars of GPUs), with shares of a bucket where Mélange assigns slices, over several
periods; starts couple the periods as in unit commitment (Garver, Trans. AIEE 81(3), 1962). With the rates of
:mod:`qplan.solvers.fleet.measures` for the objective, minimise::

    sum per_share[b,d,h] share[b,d,h] + per_replica[d,h] count[d,h] + per_start[d,h] start[d,h] + held GPUs

over::

    demand[b,h]      sum_d share[b,d,h] = 1                                       where rate[b,h] > 0
    capacity[d,h]    sum_b rate[b,h] / capacity[b,d] share[b,d,h] <= count[d,h]
    start[d,h]       count[d,h] - count[d,h-1] <= start[d,h]                      h-1 of the first: the last, or none
    fit[g,r,h]       sum of weight[d] count[d,h] over row r's options <= sum_p contents[p,r] node[g,p,h]
    inventory[g,h]   sum_p node[g,p,h] <= inventory[g] / node_gpus[g]             pools that are not committed
    inventory[g,h]   sum_p node[g,p,h] <= stock[g]                                committed pools
    bought[g]        stock[g] <= inventory[g] / node_gpus[g]
    power[h]         kWh of the period <= power_cap_w hours[h] / 1000
    quality[k]       sum over k's buckets of requests[b,h] (quality[b,d] - mean_quality[k]) share[b,d,h] >= 0
    at_most[m]       measure m <= its limit; of quality: at least

Counts, nodes and stocks are whole. Shares and counts stand for a plan, in which the energy of a period is that of its
replicas' idle power, its starts and its requests; starts are whole wherever counts are and starts cost anything.
Where GPUs are bought singly, ``fit`` and ``inventory`` are one row without node columns. How nodes are
filled: :mod:`qplan.solvers.fleet.nodes`. How spare replicas are asked for: :mod:`qplan.solvers.fleet.spare`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import MatrixProgram
from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.measures import J_PER_KWH
from qplan.solvers.fleet.nodes import packing

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qplan.solvers.fleet.problem import FleetProblem

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]


def build(problem: FleetProblem, kept: Indices) -> FleetProgram:
    """Return the program of `problem` over the options `kept`."""
    periods, options = len(problem.hours), len(kept)
    load = np.stack([problem.load(h)[:, kept] for h in range(periods)], axis=-1)
    bucket, option, period = np.nonzero(load)
    pair = bucket, option, period
    empty = np.empty(0)
    matrix = MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
    matrix = matrix.with_columns([f"share {b} {kept[d]} {h}" for b, d, h in zip(bucket, option, period, strict=True)])
    share = np.arange(len(bucket))
    labels = [f"{d} {h}" for d in kept for h in range(periods)]
    count = len(share) + np.arange(options * periods).reshape(options, periods)
    most = np.repeat(problem.most_replicas[kept], periods)
    matrix = matrix.with_columns([f"count {label}" for label in labels], upper=most, integer=True)
    start = count + count.size
    matrix = matrix.with_columns([f"start {label}" for label in labels])
    no_columns = tuple(np.empty((0, periods), np.int64) for _ in problem.pools)
    stock = np.full(len(problem.pools), -1)
    program = FleetProgram(problem, kept, pair, load[pair], matrix, share, count, start, stock, no_columns, {})
    program = _serving(program)
    program = _starting(program)
    for g in range(len(problem.pools)):
        program = _pool(program, g)
    return _limits(program)


def _serving(program: FleetProgram) -> FleetProgram:
    """Add the rows of demand and capacity."""
    problem = program.problem
    bucket, option, period = program.pair
    demand = np.full(problem.rate_qps.shape, -1)
    wanted = problem.rate_qps > 0
    demand[wanted] = np.arange(wanted.sum())
    program = _rows(program, "demand", demand, demand[bucket, period], program.share, 1.0, lower=1.0, upper=1.0)
    capacity = np.arange(program.count.size).reshape(program.count.shape)
    return _rows(
        program,
        "capacity",
        capacity,
        np.concatenate([capacity[option, period], capacity.ravel()]),
        np.concatenate([program.share, program.count.ravel()]),
        np.concatenate([program.loads, -np.ones(capacity.size)]),
        upper=0.0,
    )


def _starting(program: FleetProgram) -> FleetProgram:
    """Add the rows of starts; a horizon of one period that repeats has none."""
    count, start = program.count, program.start
    if program.problem.cyclic and count.shape[1] == 1:
        return program.with_matrix(program.matrix.with_bounds(start.ravel(), 0.0, 0.0))
    row = np.arange(count.size).reshape(count.shape)
    before = np.roll(count, 1, axis=1)
    late = slice(0 if program.problem.cyclic else 1, None)
    rows = np.concatenate([row.ravel(), row.ravel(), row[:, late].ravel()])
    columns = np.concatenate([count.ravel(), start.ravel(), before[:, late].ravel()])
    values = np.concatenate([np.ones(row.size), -np.ones(row.size), -np.ones(row[:, late].size)])
    return _rows(program, "start", row, rows, columns, values, upper=0.0)


def _pool(program: FleetProgram, g: int) -> FleetProgram:
    """Add what a pool's GPUs are counted by, and how many there are."""
    problem, periods = program.problem, len(program.problem.hours)
    of_pool = np.flatnonzero(problem.pool[program.kept] == g)
    units = np.floor(problem.inventory[g] / problem.node_gpus[g] + 1e-9)
    every = np.arange(periods)
    stock = np.empty(0, np.int64)
    if problem.committed[g]:
        stock = np.array([len(program.matrix.cost)])
        matrix = program.matrix.with_columns([f"stock {g}"], upper=units, integer=True)
        stocks = program.stock.copy()
        stocks[g] = stock[0]
        program = replace(program, matrix=matrix, stock=stocks)
        if np.isfinite(units):
            program = _rows(program, f"bought {g}", np.zeros(1, int), [0], stock, 1.0, upper=float(units))
    everyone = np.flatnonzero((problem.pool == g) & problem.eligible.any(0))
    if not everyone.size:
        return program
    # The rows are the same whichever options are kept, so that their prices say what the others would be worth.
    pack = packing(problem.gpus[everyone], int(problem.node_gpus[g]))
    kinds, levels = pack.contents.shape
    place = np.searchsorted(everyone, program.kept[of_pool])
    uses = program.count[of_pool]
    weight = np.broadcast_to(pack.weight[place, None].astype(float), uses.shape)

    if problem.node_gpus[g] > 1:
        node = len(program.matrix.cost) + np.arange(kinds * periods).reshape(kinds, periods)
        names = [f"node {g} {p} {h}" for p in range(kinds) for h in every]
        matrix = program.matrix.with_columns(names, integer=True)
        program = replace(
            program, matrix=matrix, node=tuple(node if i == g else old for i, old in enumerate(program.node))
        )
        fit = np.arange(levels * periods).reshape(levels, periods)
        given = np.broadcast_to(pack.contents[:, :, None], (kinds, levels, periods))
        p, r, h = np.nonzero(given)
        program = _rows(
            program,
            f"fit {g}",
            fit,
            np.concatenate([fit[pack.row[place]].ravel(), fit[r, h]]),
            np.concatenate([uses.ravel(), node[p, h]]),
            np.concatenate([weight.ravel(), -given[p, r, h]]),
            upper=0.0,
        )
        uses, weight = node, np.ones(node.shape)
    if not stock.size and np.isinf(units):
        return program
    limit = np.tile(stock[:, None], (1, periods))
    return _rows(
        program,
        f"inventory {g}",
        every,
        np.concatenate([np.broadcast_to(every, uses.shape).ravel(), np.broadcast_to(every, limit.shape).ravel()]),
        np.concatenate([uses.ravel(), limit.ravel()]),
        np.concatenate([weight.ravel(), -np.ones(limit.size)]),
        upper=0.0 if stock.size else float(units),
    )


def _limits(program: FleetProgram) -> FleetProgram:
    """Add the rows of power, quality and limits on measures, each in units of its limit."""
    problem = program.problem
    bucket, option, period = program.pair
    if np.isfinite(problem.power_cap_w):
        limit = problem.power_cap_w * problem.hours / 1000.0
        every = np.arange(len(limit))
        options = program.kept[option]
        dynamic = problem.requests[bucket, period] * problem.dynamic_j[bucket, options] / J_PER_KWH
        idle = np.broadcast_to(problem.idle_w[program.kept, None] / 1000.0, program.count.shape)
        warming = idle * problem.start_s[program.kept, None] / 3600.0
        here = np.broadcast_to(every, program.count.shape).ravel()
        program = _rows(
            program,
            "power",
            every,
            np.concatenate([period, here, here]),
            np.concatenate([program.share, program.count.ravel(), program.start.ravel()]),
            np.concatenate(
                [dynamic / limit[period], (idle * problem.hours / limit).ravel(), (warming / limit).ravel()]
            ),
            upper=1.0,
        )
    floors = np.where(problem.mean_quality > 0, np.cumsum(problem.mean_quality > 0) - 1, -1)
    every_bucket = np.ones(len(problem.bucket_class), bool)
    above = program.pair_quality(every_bucket, problem.mean_quality[problem.bucket_class][bucket])
    row = floors[problem.bucket_class[bucket]]
    if (floors >= 0).any():
        program = _rows(program, "quality", floors, row[row >= 0], program.share[row >= 0], above[row >= 0], lower=0.0)
    for name, most in problem.at_most.items():
        if name == "quality":  # as the floors are written: shares that go unserved leave it as it is
            columns, values, size = program.share, -program.pair_quality(every_bucket, most), 1.0
        else:
            (columns, values), size = program.measure(name), max(most, 1e-9)
        program = _rows(
            program,
            f"at_most {name}",
            np.zeros(1, int),
            np.zeros(len(columns)),
            columns,
            values / size,
            upper=0.0 if name == "quality" else most / size,
        )
    return program


def _rows(
    program: FleetProgram,
    kind: str,
    index: Indices,
    rows: ArrayLike,
    columns: ArrayLike,
    values: ArrayLike,
    *,
    lower: float = -np.inf,
    upper: float = np.inf,
) -> FleetProgram:
    """Append rows of one kind; `index` numbers them from 0, -1 where there is none."""
    first, number = len(program.matrix.row_lower), int(index.max(initial=-1)) + 1
    columns = np.asarray(columns)
    values = np.broadcast_to(np.asarray(values, float), columns.shape)
    matrix = program.matrix.with_rows(rows, columns, values, np.full(number, lower), np.full(number, upper))
    return replace(program, matrix=matrix, rows={**program.rows, kind: np.where(index >= 0, first + index, -1)})
