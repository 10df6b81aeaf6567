"""Why no fleet does it, and the nearest change that lets one: the elastic relaxation, one kind of limit at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.capacity.solve import Run
from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.measures import J_PER_KWH
from qplan.solvers.fleet.program import build
from qplan.solvers.fleet.prune import undominated
from qplan.solvers.fleet.search import minimise
from qplan.solvers.fleet.solve import solve_fleet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.fleet.problem import FleetProblem

#: How closely the least changes are found, relative.
_STEP = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """Why a problem is infeasible, and which single change would do. Where buckets are unserved the rest is empty.

    Attributes
    ----------
    unserved : tuple of int
        Buckets with demand that no option is eligible for.
    periods : tuple of int
        Periods whose demand alone no fleet carries within the inventory, the power cap and the floors.
    classes : tuple of int
        Classes whose demand alone, through the horizon, no fleet carries.
    extra_gpus : dict of int to int
        By pool: more GPUs of that pool alone that make it feasible.
    extra_of_all : ndarray of int, shape (G,), or None
        The fewest more GPUs over all pools together; None if no number of them does.
    power_w
        The least power cap, all else as it is; None if none does, or there is none.
    mean_quality : ndarray of shape (K,), or None
        Floors that can be kept, all lowered by the same least amount.
    at_most : dict of str to float
        By limited measure: the least limit (for quality the highest) that is feasible, all else as it is.
    without_spare
        Whether giving up the spare does it; None without spare, or if time was up.
    """

    unserved: tuple[int, ...]
    periods: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    extra_gpus: dict[int, int] | None = None
    extra_of_all: NDArray[np.int64] | None = None
    power_w: float | None = None
    mean_quality: NDArray[np.float64] | None = None
    at_most: dict[str, float] | None = None
    without_spare: bool | None = None


def diagnose(problem: FleetProblem, *, backend: str | SolverBackend = "highs", time_limit_s: float = 30.0) -> Diagnosis:
    """Return what keeps `problem` from having a fleet.

    Parameters
    ----------
    backend
        A backend or the name of one.
    time_limit_s
        Wall time for everything. What is not found by then is absent.
    """
    run = Run.start(backend, time_limit_s, _STEP)
    unserved = np.flatnonzero((problem.rate_qps > 0).any(1) & ~problem.eligible.any(1))
    if unserved.size:
        return Diagnosis(tuple(unserved.tolist()))
    limited = np.flatnonzero(np.isfinite(problem.inventory))
    one_pool = {int(g): extra for g in limited if (extra := _extra_gpus(problem, np.array([g]), run)) is not None}
    # More GPUs of every pool are only asked for where one pool's do not help.
    every = None if one_pool or len(limited) < 2 else _extra_gpus(problem, limited, run)
    return Diagnosis(
        unserved=(),
        periods=tuple(h for h in range(len(problem.hours)) if _solvable(problem.at(h), run) is False),
        classes=tuple(k for k in range(len(problem.classes)) if _solvable(_only(problem, k), run) is False),
        extra_gpus={g: int(extra[g]) for g, extra in one_pool.items()},
        extra_of_all=every,
        power_w=_least_power(problem, run),
        mean_quality=_floors_kept(problem, run),
        at_most={name: limit for name in problem.at_most if (limit := _least_limit(problem, name, run)) is not None},
        without_spare=_solvable(replace(problem, spare=0), run) if problem.spare else None,
    )


def _only(problem: FleetProblem, k: int) -> FleetProblem:
    return replace(problem, rate_qps=problem.rate_qps * (problem.bucket_class == k)[:, None], then=())


def _solvable(problem: FleetProblem, run: Run) -> bool | None:
    """Whether a problem has a fleet; None if time is up before that is known."""
    if run.left_s <= 0:
        return None
    result = solve_fleet(replace(problem, then=()), backend=run.backend, time_limit_s=run.left_s, mip_gap=1.0)
    return {"infeasible": False, "no-solution": None}.get(result.status, True)


def _extra_gpus(problem: FleetProblem, pools: NDArray[np.int64], run: Run) -> NDArray[np.int64] | None:
    """Return the fewest more GPUs of `pools` that make the problem feasible, by whole nodes; None if none do."""
    ample = problem.inventory.copy()
    ample[pools] = np.inf
    open_ended = replace(problem, inventory=ample)
    program = build(open_ended, undominated(open_ended))
    matrix = program.matrix.with_columns([f"extra {g}" for g in pools], integer=True)
    extra = np.arange(len(matrix.cost) - len(pools), len(matrix.cost))
    for g, column in zip(pools.tolist(), extra.tolist(), strict=True):
        size = int(problem.node_gpus[g])
        units = float(problem.inventory[g] // size)
        if program.stock[g] >= 0:
            matrix = matrix.with_row([program.stock[g], column], [1.0, -1.0], upper=units)
            continue
        for h in range(len(problem.hours)):
            if size > 1:
                columns, weights = program.node[g][:, h], np.ones(len(program.node[g]))
            else:
                of_pool = np.flatnonzero(problem.pool[program.kept] == g)
                columns, weights = program.count[of_pool, h], problem.gpus[program.kept[of_pool]].astype(float)
            matrix = matrix.with_row(np.append(columns, column), np.append(weights, -1.0), upper=units)
    answer = minimise(program.with_matrix(matrix.with_cost(extra, problem.node_gpus[pools])), run)
    if answer.solution.values is None:
        return None
    more = np.zeros(len(problem.pools), np.int64)
    more[pools] = np.round(answer.solution.values[extra]).astype(np.int64) * problem.node_gpus[pools]
    return more


def _least_power(problem: FleetProblem, run: Run) -> float | None:
    if np.isinf(problem.power_cap_w):
        return None
    free = replace(problem, power_cap_w=np.inf)
    program = build(free, undominated(problem))
    matrix = program.matrix.with_columns(["peak kW"])
    peak = len(matrix.cost) - 1
    bucket, option, period = program.pair
    option = program.kept[option]
    kwh = problem.requests[bucket, period] * problem.dynamic_j[bucket, option] / J_PER_KWH
    idle_kw = problem.idle_w[program.kept] / 1000.0
    for h, hours in enumerate(problem.hours):
        here = np.flatnonzero(period == h)
        matrix = matrix.with_row(
            np.concatenate([program.share[here], program.count[:, h], program.start[:, h], [peak]]),
            np.concatenate(
                [
                    kwh[here] / hours,
                    idle_kw,
                    idle_kw * problem.start_s[program.kept] / 3600.0 / hours,
                    [-1.0],
                ]
            ),
            upper=0.0,
        )
    least = _least(program.with_matrix(matrix.with_cost([peak], 1.0)), run)
    return None if least is None else 1000.0 * least


def _floors_kept(problem: FleetProblem, run: Run) -> NDArray[np.float64] | None:
    if not problem.mean_quality.any():
        return None
    free = replace(problem, mean_quality=np.zeros(len(problem.classes)))
    program = build(free, undominated(problem))
    matrix = program.matrix.with_columns(["shortfall"])
    shortfall = len(matrix.cost) - 1
    for k, floor in enumerate(problem.mean_quality.tolist()):
        mine = problem.bucket_class == k
        if floor > 0 and problem.requests[mine].any():
            quality = program.pair_quality(mine, 0.0)
            matrix = matrix.with_row(np.append(program.share, shortfall), np.append(quality, 1.0), lower=floor)
    least = _least(program.with_matrix(matrix.with_cost([shortfall], 1.0)), run)
    return None if least is None else np.maximum(problem.mean_quality - least, 0.0)


def _least_limit(problem: FleetProblem, name: str, run: Run) -> float | None:
    """Return the least that a measure can be, all other limits kept."""
    others = {other: limit for other, limit in problem.at_most.items() if other != name}
    free = replace(problem, at_most=others)
    least = _least(build(free, undominated(problem)).minimising(name), run)
    return least if least is None or name != "quality" else -least


def _least(program: FleetProgram, run: Run) -> float | None:
    return None if run.left_s <= 0 else minimise(program, run).solution.objective
