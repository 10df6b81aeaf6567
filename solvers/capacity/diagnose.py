"""Why no fleet carries the demand, and what would change that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.capacity.program import build
from qplan.solvers.capacity.prune import undominated
from qplan.solvers.capacity.solve import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.capacity.problem import CapacityProblem

_SCALE_STEP = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """Why a problem is infeasible. Where classes are unserved, inventory is not the matter and the rest is None.

    Attributes
    ----------
    unserved : tuple of int
        Classes for which no deployment is eligible.
    demand_scale
        The largest fraction of the demand, same for every class, that the inventory carries, found to a
        thousandth; 1 where the problem is feasible.
    feasible_without_spare
        Whether giving up the spare is enough; None where there is none.
    extra_gpus : ndarray of int, shape (G,), or None
        The fewest additional GPUs, over all types together, with which it is feasible; of equally few, those
        of the cheapest fleet.
    extra_of_one_type : dict of int to int
        For each type whose GPUs alone would do, by its index: how many more of them.
    """

    unserved: tuple[int, ...]
    demand_scale: float | None
    feasible_without_spare: bool | None
    extra_gpus: NDArray[np.int64] | None
    extra_of_one_type: dict[int, int]


def diagnose(
    problem: CapacityProblem, *, backend: str | SolverBackend = "highs", time_limit_s: float = 30.0
) -> Diagnosis:
    """Return what keeps `problem` from having a fleet.

    Parameters
    ----------
    backend
        A backend or the name of one.
    time_limit_s
        Wall time for everything. What is not found by then is None or absent.
    """
    run = Run.start(backend, time_limit_s)
    unserved = np.flatnonzero(~(problem.capacity_qps > 0).any(1))
    if unserved.size:
        return Diagnosis(tuple(unserved.tolist()), None, None, None, {})

    program = build(problem, undominated(problem, by_quality=False))
    answer, _ = replace(run, mip_gap=_SCALE_STEP).minimise(program.most_demand(at_least=0.0, at_most=1.0))
    demand_scale = None if answer.objective is None else -answer.objective

    without_spare: bool | None = None
    if problem.spare:
        bare = replace(problem, spare=0)
        answer, _ = run.minimise(build(bare, undominated(bare, by_quality=False)).minimising(problem.price))
        without_spare = None if answer.status == "no-solution" else answer.values is not None

    limited = np.flatnonzero(np.isfinite(problem.inventory))
    extra_of_one_type = {}
    for g in limited:
        extra = _extra_gpus(problem, np.array([g]), run)
        if extra is not None:
            extra_of_one_type[int(g)] = int(extra[g])
    return Diagnosis((), demand_scale, without_spare, _extra_gpus(problem, limited, run), extra_of_one_type)


def _extra_gpus(problem: CapacityProblem, types: NDArray[np.int64], run: Run) -> NDArray[np.int64] | None:
    """Return the fewest additional GPUs of `types` that make the problem feasible, or None if none do."""
    # How many replicas may be of use is a matter of the inventory that the extra GPUs make.
    ample = problem.inventory.copy()
    ample[types] = np.inf
    open_ended = replace(problem, inventory=ample)
    program = build(open_ended, undominated(open_ended, by_quality=False))
    matrix = program.matrix.with_columns([f"extra {problem.gpu_types[g]}" for g in types], integer=True)
    extra = np.arange(len(matrix.cost) - len(types), len(matrix.cost))
    for g, column in zip(types, extra, strict=True):
        of_type = np.flatnonzero(problem.gpu_type[program.kept] == g)
        matrix = matrix.with_row(
            np.append(program.count[of_type], column),
            np.append(problem.gpus[program.kept[of_type]], -1.0),
            upper=float(problem.inventory[g]),
        )
    fewest = program.with_matrix(matrix.with_cost(extra, 1.0))
    answer, fewest = run.minimise(fewest)
    if answer.values is None or answer.objective is None:
        return None
    cheapest = fewest.with_matrix(fewest.matrix.with_row(extra, 1.0, upper=answer.objective))
    refined, _ = run.minimise(cheapest.minimising(problem.cost_per_hour))
    values = answer.values if refined.values is None else refined.values
    more = np.zeros(len(problem.gpu_types), np.int64)
    more[types] = np.round(values[extra]).astype(np.int64)
    return more
