"""Why this fleet: what binds, what a little more of it would be worth, and which other fleets come close."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.capacity.solve import Run
from qplan.solvers.fleet.measures import kwh_used, mean_quality
from qplan.solvers.fleet.prune import undominated
from qplan.solvers.fleet.relax import Prices, relax
from qplan.solvers.fleet.search import weighing, within
from qplan.solvers.fleet.solve import solve_fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.fleet.problem import FleetProblem, FleetResult

#: How much more than the best a fleet may take to be worth naming.
CLOSE = 0.05

#: How near to a limit counts as binding, relative.
_TIGHT = 1e-3

#: Gap to which fleets are solved that are only compared with the best.
_NEAR = 2e-3


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """What has no room left.

    Attributes
    ----------
    gpus : ndarray of bool, shape (G, H)
        Pools of which too few GPUs are left for one more replica of anything that serves.
    power : ndarray of bool, shape (H,)
    quality : ndarray of bool, shape (K,)
        Floors on the mean quality.
    at_most : tuple of str
        Limited measures.
    """

    gpus: NDArray[np.bool_]
    power: NDArray[np.bool_]
    quality: NDArray[np.bool_]
    at_most: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RunnerUp:
    """The best fleet without some options.

    Attributes
    ----------
    without
        What it does without: the name of an option or pool.
    result
        The fleet.
    premium
        How much more it takes of the objective, as a fraction of the best.
    """

    without: str
    result: FleetResult
    premium: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What stands behind a fleet.

    Attributes
    ----------
    binding
        What has no room left.
    prices
        Shadow prices of the linear relaxation, in units of the objective over the horizon; None if time was up.
    runners_up : tuple of RunnerUp
        Fleets of another kind within :data:`CLOSE` of the best, by objective; the best of the others if none is.
    """

    binding: Binding
    prices: Prices | None
    runners_up: tuple[RunnerUp, ...]


def explain(
    problem: FleetProblem, result: FleetResult, *, backend: str | SolverBackend = "highs", time_limit_s: float = 60.0
) -> Explanation:
    """Return why `result`, which has a fleet, answers `problem`.

    Parameters
    ----------
    time_limit_s
        Wall time for everything, most of it for the fleets that come close.
    """
    run = Run.start(backend, time_limit_s, _NEAR)
    return Explanation(
        binding(problem, result),
        relax(problem, undominated(problem), run),
        _runners_up(problem, result, run),
    )


def binding(problem: FleetProblem, result: FleetResult) -> Binding:
    """Return what leaves a fleet no room."""
    serves = problem.eligible.any(0)
    used = np.zeros(problem.gpu_price.shape)
    np.add.at(used, problem.pool, problem.gpus[:, None] * result.counts)
    smallest = np.full(len(problem.pools), np.inf)
    np.minimum.at(smallest, problem.pool[serves], problem.gpus[serves].astype(float))
    watts = kwh_used(problem, result.counts.astype(float), result.starts.astype(float), result.share)
    watts *= 1000.0 / problem.hours
    reached = np.array(
        [mean_quality(problem, result.share, problem.bucket_class == k) for k in range(len(problem.classes))]
    )
    return Binding(
        gpus=problem.inventory[:, None] - used < smallest[:, None],
        power=watts >= problem.power_cap_w * (1 - _TIGHT),
        quality=(problem.mean_quality > 0) & (reached <= problem.mean_quality + _TIGHT),
        at_most=tuple(
            name for name, limit in problem.at_most.items() if abs(result.measures[name] - limit) <= _TIGHT * limit
        ),
    )


def saved(
    prices: Prices, changed: FleetProblem, *, backend: str | SolverBackend = "highs", time_limit_s: float = 10.0
) -> float | None:
    """Return what a change takes off the objective, were replicas divisible; None if it leaves no fleet.

    Parameters
    ----------
    prices
        Of the problem as it is.
    changed
        The problem with SLOs that are later, for example, whose options then have other capacities.
    """
    other = relax(changed, undominated(changed), Run.start(backend, time_limit_s))
    return None if other is None else prices.bound - other.bound


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What would change if a prediction were wrong, were replicas divisible.

    Attributes
    ----------
    what
        What was changed.
    moved
        Fraction of the replica-hours of the best fleet that the best one then does without.
    regret
        What the best fleet then saves, as a fraction of the objective; None if there is none. Where a prediction was
        too high, this is below 0: what keeping the demand served costs more.
    """

    what: str
    moved: float
    regret: float | None


def what_to_measure(
    problem: FleetProblem,
    wrong: Iterable[tuple[str, FleetProblem]],
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 60.0,
) -> list[Sensitivity]:
    """Return which of some errors would change the best fleet, those that would change it most first.

    Compared are the optima of the linear relaxation, which are exact and found at once: fleets of whole replicas that
    are not solved to the end would differ by more than the errors change them.

    Parameters
    ----------
    wrong
        What is wrong, and the problem as it would be then: the capacities of one deployment at the upper or lower
        end of their interval, for example.
    time_limit_s
        Wall time for everything; errors that are not tried by then are left out.
    """
    run = Run.start(backend, time_limit_s)
    best = _divisible(problem, run)
    if best is None:
        return []
    least, base = best
    found = []
    for what, other in wrong:
        now = _divisible(other, run)
        if run.left_s <= 0:
            break
        if now is None:
            found.append(Sensitivity(what, 1.0, None))
            continue
        moved = float(np.maximum(base - now[1], 0.0).sum() / max(base.sum(), 1e-300))
        found.append(Sensitivity(what, moved, (least - now[0]) / (least or 1.0)))
    return sorted(found, key=lambda one: (one.moved, abs(one.regret or 0.0)), reverse=True)


def _divisible(problem: FleetProblem, run: Run) -> tuple[float, NDArray[np.float64]] | None:
    """Return the linear relaxation's optimum and its replica-hours, shape (D, H); None if there is none in time."""
    prices = relax(problem, undominated(problem), run)
    if prices is None or run.left_s <= 0:
        return None
    program = weighing(problem, prices.active)
    relaxed = replace(program.matrix, integer=np.zeros_like(program.matrix.integer))
    answer = run.backend.solve(relaxed, time_limit_s=run.left_s, mip_gap=0.0)
    if answer.values is None or answer.objective is None:
        return None
    hours = np.zeros((len(problem.options), len(problem.hours)))
    hours[program.kept] = answer.values[program.count] * problem.hours
    return answer.objective, hours


def _runners_up(problem: FleetProblem, best: FleetResult, run: Run) -> tuple[RunnerUp, ...]:
    """Solve again without each pool and each option in use, those that the linear relaxation does not rule out."""
    assert best.objective is not None
    others: list[tuple[float, str, FleetProblem]] = []
    for name, excluded in _exclusions(problem, best):
        other = replace(problem, capacity_qps=np.where(excluded, 0.0, problem.capacity_qps), then=())
        prices = relax(other, undominated(other), within(run, 1 / 2))
        if prices is not None:
            others.append((prices.bound, name, other))
    others.sort(key=lambda one: one[0])
    close = [one for one in others if one[0] <= best.objective * (1 + CLOSE)] or others[:1]
    found: dict[bytes, RunnerUp] = {}
    for n, (_, name, other) in enumerate(close):
        share = run.left_s / (len(close) - n)
        result = solve_fleet(other, backend=run.backend, time_limit_s=share, mip_gap=run.mip_gap)
        if result.objective is not None:
            premium = (result.objective - best.objective) / best.objective if best.objective else 0.0
            found.setdefault(result.counts.tobytes(), RunnerUp(name, result, premium))
    ranked = sorted(found.values(), key=lambda one: one.premium)
    return tuple([one for one in ranked if one.premium <= CLOSE] or ranked[:1])


def _exclusions(problem: FleetProblem, best: FleetResult) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield what to do without, and the options that this rules out, shape (D,)."""
    hours = best.counts @ problem.hours
    used = np.flatnonzero(hours)
    for g in np.unique(problem.pool[used]):
        yield problem.pools[g], problem.pool == g
    for d in used[np.argsort(-hours[used], kind="stable")]:
        yield problem.options[d], np.arange(len(hours)) == d
