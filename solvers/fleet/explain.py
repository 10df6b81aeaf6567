"""Why this fleet: what binds, what a little more of it would be worth, and which other fleets come close."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.capacity.solve import Run
from qplan.solvers.fleet.measures import kwh_used, mean_quality
from qplan.solvers.fleet.prune import undominated
from qplan.solvers.fleet.relax import Prices, relax
from qplan.solvers.fleet.solve import solve_fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.fleet.problem import FleetProblem, FleetResult

#: How much more than the best a fleet may take to be worth naming.
CLOSE = 0.05

#: How near to a limit counts as binding, relative.
_TIGHT = 1e-3


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
    run = Run.start(backend, time_limit_s, 1e-3)
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


def marginal(
    problem: FleetProblem,
    result: FleetResult,
    changed: Callable[[float], FleetProblem],
    step: float,
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 30.0,
) -> float | None:
    """Return what a unit of something takes off the objective, from a solve with a step of it.

    Parameters
    ----------
    changed
        The problem with that much more of it: with SLOs later by so many seconds, for example, whose options then
        have other capacities. It is weighed by the objective of `problem`, which is it with nothing more.
    step
        How much to try, of either sign. Too small a step changes no whole replica.

    Returns
    -------
    float or None
        Objective saved per unit; None if the changed problem has no fleet.
    """
    asked = replace(changed(step), objective=problem.objective, then=())
    other = solve_fleet(asked, backend=backend, time_limit_s=time_limit_s)
    if other.objective is None or result.objective is None:
        return None
    return (result.objective - other.objective) / step


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What would change if a prediction were wrong.

    Attributes
    ----------
    what
        What was changed.
    objective
        Of the best fleet then; None if there is none.
    moved
        Fraction of the replica-hours of the plan that the best fleet then does without.
    regret
        What the objective of the best fleet then saves, as a fraction of the plan's. Where a prediction was too
        high, this is below 0: what keeping the demand served costs more.
    """

    what: str
    objective: float | None
    moved: float
    regret: float


def what_to_measure(
    problem: FleetProblem,
    result: FleetResult,
    wrong: Iterable[tuple[str, FleetProblem]],
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 60.0,
) -> list[Sensitivity]:
    """Return which of some errors would change the plan, those that would change it most first.

    Parameters
    ----------
    wrong
        What is wrong, and the problem as it would be then: the capacities of one deployment at the upper or lower
        end of their interval, for example.
    time_limit_s
        Wall time for everything; errors that are not tried by then are left out.
    """
    deadline = time.perf_counter() + time_limit_s
    base = result.counts * problem.hours
    found = []
    for what, other in wrong:
        left = deadline - time.perf_counter()
        if left <= 0:
            break
        now = solve_fleet(replace(other, then=()), backend=backend, time_limit_s=left, mip_gap=1e-3)
        moved = float(np.maximum(base - now.counts * problem.hours, 0.0).sum() / max(base.sum(), 1e-300))
        assert result.objective is not None
        saved = 0.0 if now.objective is None else (result.objective - now.objective) / (result.objective or 1.0)
        found.append(Sensitivity(what, now.objective, moved, saved))
    return sorted(found, key=lambda one: (one.moved, abs(one.regret)), reverse=True)


def _runners_up(problem: FleetProblem, best: FleetResult, run: Run) -> tuple[RunnerUp, ...]:
    """Solve again without each pool in use, and without each option in use, those with most replicas first."""
    assert best.objective is not None
    found: dict[bytes, RunnerUp] = {}
    for name, excluded in _exclusions(problem, best):
        if run.left_s <= 0:
            break
        other = replace(problem, capacity_qps=np.where(excluded, 0.0, problem.capacity_qps), then=())
        result = solve_fleet(other, backend=run.backend, time_limit_s=run.left_s / 2, mip_gap=run.mip_gap)
        if result.objective is not None:
            premium = (result.objective - best.objective) / best.objective if best.objective else 0.0
            found.setdefault(result.counts.tobytes(), RunnerUp(name, result, premium))
    ranked = sorted(found.values(), key=lambda one: one.premium)
    close = [one for one in ranked if one.premium <= CLOSE]
    return tuple(close or ranked[:1])


def _exclusions(problem: FleetProblem, best: FleetResult) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield what to do without, and the options that this rules out, shape (D,)."""
    hours = best.counts @ problem.hours
    used = np.flatnonzero(hours)
    for g in np.unique(problem.pool[used]):
        yield problem.pools[g], problem.pool == g
    for d in used[np.argsort(-hours[used], kind="stable")]:
        yield problem.options[d], np.arange(len(hours)) == d
