"""Deployments that no plan needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.capacity.problem import CapacityProblem


def undominated(problem: CapacityProblem, *, by_quality: bool) -> NDArray[np.int64]:
    """Return the indices of the deployments worth planning with.

    A deployment goes if it serves nothing, or if one or several replicas of another can stand in for each of its
    own: on the same GPU type they take no more GPUs and no more money together, and carry at least as much of
    every class at no less quality. The swap keeps any fleet's guarantees, also after the loss of a replica
    (which is then a smaller loss), so neither objective, quality nor headroom suffers. Of equals, the first stays.
    """
    capacity, quality = problem.capacity_qps, problem.quality
    gpus, cost = problem.gpus, problem.cost_per_hour
    kept: NDArray[np.bool_] = np.asarray((capacity > 0).any(0))
    for d in np.flatnonzero(kept)[::-1]:
        rivals = kept & (problem.gpu_type == problem.gpu_type[d]) & (gpus <= gpus[d]) & (cost <= cost[d])
        rivals[d] = False
        left = np.flatnonzero(rivals)
        affordable = np.full(len(left), np.inf)
        np.divide(cost[d] * (1 + 1e-12), cost[left], out=affordable, where=cost[left] > 0)
        stand_ins = np.floor(np.minimum(gpus[d] / gpus[left], affordable))
        for k in np.flatnonzero(capacity[:, d]):
            as_good = stand_ins * capacity[k, left] >= capacity[k, d]
            if by_quality:
                as_good &= quality[k, left] >= quality[k, d]
            left, stand_ins = left[as_good], stand_ins[as_good]
            if not left.size:
                break
        kept[d] = not left.size
    return np.flatnonzero(kept)
