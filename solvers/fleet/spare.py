"""Fleets that carry the demand after the loss of any `spare` replicas.

For prices ``w >= 0`` of a busy replica, the demand of a period takes at least its worth ``V(w) = sum_b min_d load[b, d]
w[d]``, and replicas ``n`` carry it exactly if ``w @ n >= V(w)`` for every ``w`` (Farkas; see
:mod:`qplan.solvers.capacity.spare`). After the worst loss of r replicas that is ``w @ n - (the r dearest replicas that
run) >= V(w)``, and the sum of the r largest of some numbers is ``min over t of r t + sum max(number - t, 0)`` (Ogryczak
and Tamir, Information Processing Letters 85(3), 2003). So each ``w`` gives rows for one period::

    w @ count - r t - sum over d, j of z[d, j] >= V(w)
    z[d, j] >= w[d] runs[d, j] - t          for j = 1 .. r
    count[d] <= (j - 1) + most[d] runs[d, j]    with the most that count[d] may be

where ``runs[d, j]`` is 1 if there are at least j replicas of d. The program starts without them and gets those that its
own answers break: every program solved on the way is a relaxation, so the last one's bound and gap hold.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.capacity.prices import bottleneck, demand_worth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.fleet.columns import FleetProgram

    Floats = NDArray[np.float64]

#: Replicas that may be missing after a loss before it counts; above what solvers let a row be missed by.
_MISSING = 1e-5


def with_runs(program: FleetProgram) -> tuple[FleetProgram, NDArray[np.int64]]:
    """Return the program with its columns ``runs``, and their indices, shape (D', spare, H)."""
    problem, count = program.problem, program.count
    options, periods = count.shape
    runs = len(program.matrix.cost) + np.arange(options * problem.spare * periods).reshape(options, -1, periods)
    names = [f"runs {d} {j} {h}" for d in program.kept for j in range(problem.spare) for h in range(periods)]
    matrix = program.matrix.with_columns(names, upper=1.0, integer=True)
    j = np.broadcast_to(np.arange(problem.spare)[:, None], runs.shape).ravel()
    each = np.arange(runs.size)
    # A period solved by itself may keep replicas for the periods around it: its columns' own limits count.
    most = np.broadcast_to(np.maximum(matrix.upper[count], 1.0)[:, None, :], runs.shape)
    matrix = matrix.with_rows(
        np.concatenate([each, each]),
        np.concatenate([np.broadcast_to(count[:, None, :], runs.shape).ravel(), runs.ravel()]),
        np.concatenate([np.ones(runs.size), -most.ravel()]),
        np.full(runs.size, -np.inf),
        j.astype(float),
    )
    return program.with_matrix(matrix), runs


def broken_by_a_loss(
    program: FleetProgram, runs: NDArray[np.int64], values: Floats, backend: SolverBackend
) -> list[tuple[int, Floats]]:
    """Return periods and prices, shape (D',), whose rows rule out the fleet in `values`; none if it survives.

    Parameters
    ----------
    values : ndarray
        A solution of the program or of its relaxation, in which of a fraction of a replica that fraction is lost.
    """
    found = []
    for h in range(program.count.shape[1]):
        load = _load(program, h)
        if load.size:
            found += [(h, w) for w in _breaking(load, values[program.count[:, h]], values[runs[:, :, h]], backend)]
    return found


def reinforced(program: FleetProgram, values: Floats, backend: SolverBackend) -> Floats | None:
    """Return replicas that survive every loss, at least those in `values`, shape (D', H); None if limits forbid them.

    Replicas are added one at a time: each time the one that makes up for most of what the losses leave missing, by the
    dollar. More replicas carry more after any loss, so what survives once survives with whatever is added.
    """
    problem, counts = program.problem, np.round(values[program.count])
    for h in range(counts.shape[1]):
        load = _load(program, h)
        if not load.size:
            continue
        gpu_price = np.maximum(problem.gpu_price[problem.pool[program.kept], h], 1e-9)
        price = problem.gpus[program.kept] * gpu_price
        most, now = program.matrix.upper[program.count[:, h]], counts[:, h]
        rows: list[Floats] = []
        while True:
            broken = [w for w in rows if _short(load, now, w, problem.spare) > 0]
            if not broken:
                broken = _breaking(load, now, (now[:, None] > np.arange(problem.spare)).astype(float), backend)
                rows += broken
            if not broken:
                break
            before = np.array([_short(load, now, w, problem.spare) for w in broken])
            able = np.flatnonzero(now < most)
            with_one = [
                [_short(load, now + (np.arange(len(now)) == d), w, problem.spare) for w in broken] for d in able
            ]
            gain = (before - np.maximum(with_one, 0.0)).sum(axis=1) / price[able] if able.size else np.zeros(1)
            if gain.max() <= 0:
                return None
            now[able[gain.argmax()]] += 1  # `now` is a part of `counts`
    return counts


def _short(load: Floats, counts: Floats, prices: Floats, spare: int) -> float:
    """Return what replicas are worth less than the demand, after the loss of the dearest `spare` of them."""
    dearest = np.sort(np.repeat(prices, np.minimum(counts, spare).astype(int)))[-spare:].sum()
    return demand_worth(load, prices) - float(counts @ prices - dearest) - _MISSING * float(prices.sum())


def _breaking(load: Floats, counts: Floats, running: Floats, backend: SolverBackend) -> list[Floats]:
    """Return prices at which a period's replicas are worth less than its demand after some loss of them."""
    prices: list[Floats] = []
    for lost in _losses(running):
        left = np.maximum(counts - lost, 0.0)
        if any(demand_worth(load, w) - left @ w > _MISSING * w.sum() for w in prices):
            continue  # rows that are already on their way cover this loss too
        w = bottleneck(load, left, backend)
        if demand_worth(load, w) - left @ w > _MISSING * w.sum():
            prices.append(w / w.max())
    return prices


def with_cut(program: FleetProgram, runs: NDArray[np.int64], h: int, prices: Floats) -> FleetProgram:
    """Return the program that asks every fleet of a period to be worth the demand at `prices` after any loss."""
    spare = program.problem.spare
    priced = np.flatnonzero(prices)
    lost = runs[priced, :, h]
    first = len(program.matrix.cost)
    level, above = first, first + 1 + np.arange(lost.size)
    count = program.count[priced, h]
    row = np.arange(lost.size)
    worth = demand_worth(_load(program, h), prices)
    matrix = (
        program.matrix.with_columns([f"loss {first}", *(f"above {column}" for column in above)])
        .with_row(
            np.concatenate([count, [level], above]),
            np.concatenate([prices[priced], [-float(spare)], -np.ones(lost.size)]),
            lower=worth,
        )
        .with_rows(
            np.concatenate([row, row, row]),
            np.concatenate([above, np.full(lost.size, level), lost.ravel()]),
            np.concatenate([np.ones(lost.size), np.ones(lost.size), -np.repeat(prices[priced], spare)]),
            np.zeros(lost.size),
            np.full(lost.size, np.inf),
        )
    )
    return program.with_matrix(matrix)


def without_any_kind(program: FleetProgram, runs: NDArray[np.int64]) -> FleetProgram:
    """Return the program whose fleets carry the demand even after the loss of `spare` replicas of every option at once.

    More than is asked, and dearer: a way to some fleet that survives.
    """
    _, option, period = program.pair
    row = np.arange(program.count.size).reshape(program.count.shape)
    spare = program.problem.spare
    rows = [row[option, period], row.ravel(), np.repeat(row[:, None, :], spare, axis=1).ravel()]
    columns = [program.share, program.count.ravel(), runs.ravel()]
    values = [program.loads, -np.ones(row.size), np.ones(runs.size)]
    matrix = program.matrix.with_rows(
        np.concatenate(rows),
        np.concatenate(columns),
        np.concatenate(values),
        np.full(row.size, -np.inf),
        np.zeros(row.size),
    )
    return program.with_matrix(matrix)


def _load(program: FleetProgram, h: int) -> Floats:
    """Return the loads of a period's demand on the options kept; without the buckets that have none."""
    return np.asarray(program.problem.load(h)[program.problem.rate_qps[:, h] > 0][:, program.kept])


def _losses(running: Floats) -> Iterator[Floats]:
    """Yield what each loss of as many replicas as there are columns takes of each option, shape (D',)."""
    spare = running.shape[1]
    used = np.flatnonzero(running[:, 0] > _MISSING)
    for lost in combinations_with_replacement(used.tolist(), spare):
        times = np.bincount(np.array(lost, np.int64), minlength=len(running))
        yield np.where(np.arange(spare) < times[:, None], running, 0.0).sum(1)
