"""Why this fleet: what binds in it, and which other fleets come close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import open_backend
from qplan.solvers.capacity.prices import ShadowPrices, shadow_prices
from qplan.solvers.capacity.solve import solve_capacity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult

#: How much more than the best a fleet may cost to be worth naming.
CLOSE = 0.05

#: Utilisation from which a deployment's capacity counts as binding.
_FULL = 0.99


@dataclass(frozen=True, slots=True, eq=False)
class RunnerUp:
    """The best fleet without one deployment, or without one GPU type.

    Attributes
    ----------
    result
        The fleet.
    without_deployment, without_gpu_type
        Index of what it does without; the other is None.
    premium
        How much more it costs in the objective, as a fraction of the best.
    """

    result: CapacityResult
    without_deployment: int | None
    without_gpu_type: int | None
    premium: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why a fleet is as it is.

    Attributes
    ----------
    prices
        Shadow prices of demand and inventory.
    full_deployments : tuple of int
        Deployments in use that have no capacity left.
    gpus_used : ndarray of int, shape (G,)
    tight_gpu_types : tuple of int
        GPU types of which too few are left for one more replica of anything that serves.
    runners_up : tuple of RunnerUp
        Fleets of another kind within :data:`CLOSE` of the best, by objective; the best of the others if none is.
    """

    prices: ShadowPrices
    full_deployments: tuple[int, ...]
    gpus_used: NDArray[np.int64]
    tight_gpu_types: tuple[int, ...]
    runners_up: tuple[RunnerUp, ...]


def explain(
    problem: CapacityProblem,
    result: CapacityResult,
    *,
    backend: str | SolverBackend = "highs",
    time_limit_s: float = 30.0,
) -> Explanation:
    """Return why `result` answers `problem`.

    Parameters
    ----------
    result
        A fleet: the status is optimal or feasible.
    time_limit_s
        Wall time of each of the re-solves behind the runner-up fleets.
    """
    opened = open_backend(backend) if isinstance(backend, str) else backend
    gpus_used = problem.gpus_used(result.counts)
    serves = (problem.capacity_qps > 0).any(0)
    tight = [
        g
        for g in range(len(problem.gpu_types))
        if (of_type := serves & (problem.gpu_type == g)).any()
        and problem.inventory[g] - gpus_used[g] < problem.gpus[of_type].min()
    ]
    return Explanation(
        prices=shadow_prices(problem, opened),
        full_deployments=tuple(np.flatnonzero(result.utilisation >= _FULL).tolist()),
        gpus_used=gpus_used,
        tight_gpu_types=tuple(tight),
        runners_up=_runners_up(problem, result, opened, time_limit_s),
    )


def _runners_up(
    problem: CapacityProblem, best: CapacityResult, backend: SolverBackend, time_limit_s: float
) -> tuple[RunnerUp, ...]:
    """Solve again without each deployment in use and without each GPU type in use."""
    assert best.objective is not None
    found: dict[tuple[int, ...], RunnerUp] = {}
    for deployment, gpu_type, excluded in _exclusions(problem, best):
        result = solve_capacity(problem.without(excluded), backend=backend, time_limit_s=time_limit_s)
        if result.objective is None:
            continue
        premium = (result.objective - best.objective) / best.objective if best.objective else 0.0
        runner_up = RunnerUp(result, deployment, gpu_type, premium)
        found.setdefault(tuple(result.counts.tolist()), runner_up)
    ranked = sorted(found.values(), key=lambda runner_up: runner_up.premium)
    close = [runner_up for runner_up in ranked if runner_up.premium <= CLOSE]
    return tuple(close or ranked[:1])


def _exclusions(
    problem: CapacityProblem, best: CapacityResult
) -> Iterator[tuple[int | None, int | None, NDArray[np.bool_]]]:
    """Yield what to do without: a deployment or a GPU type, and the deployments that this rules out."""
    used = np.flatnonzero(best.counts)
    for d in used:
        yield int(d), None, np.arange(len(best.counts)) == d
    for g in np.unique(problem.gpu_type[used]):
        yield None, int(g), problem.gpu_type == g
