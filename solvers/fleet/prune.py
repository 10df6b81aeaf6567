"""Options that no plan needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.fleet.problem import FleetProblem


def undominated(problem: FleetProblem) -> NDArray[np.int64]:
    """Return the indices of the options worth planning with.

    An option goes if it serves no demand, or if one or several replicas of another can stand in for each of its own in
    every period: from the same pool they take no more GPUs together (and so fit in the same nodes), carry at least as
    much of every bucket, and are no worse in what the question looks at: the price and power of their starts, idle
    and dynamic energy, quality. The swap keeps any fleet's guarantees, also after a loss of replicas, which is then
    a smaller loss. Of equals, the first stays.
    """
    load = (problem.rate_qps > 0).any(1)
    capacity = np.where(problem.eligible, problem.capacity_qps, 0.0)[load]
    asked = {name for name, weight in problem.objective if weight} | {*problem.then, *problem.at_most}
    priced = "cost" in asked and problem.energy_price.any()
    energy = bool(asked & {"energy", "carbon"} or priced or np.isfinite(problem.power_cap_w))
    most = [problem.gpus.astype(float), problem.gpus * problem.start_s, problem.start_cost]
    by_bucket = []
    if energy:
        most += [problem.idle_w, problem.idle_w * problem.start_s]
        by_bucket.append(-problem.dynamic_j[load])
    if "quality" in asked or problem.mean_quality.any():
        by_bucket.append(problem.quality[load])

    kept: NDArray[np.bool_] = np.asarray((capacity > 0).any(0))
    for d in np.flatnonzero(kept)[::-1]:
        left = np.setdiff1d(np.flatnonzero(kept & (problem.pool == problem.pool[d])), [d])
        stand_ins = np.full(len(left), np.inf)
        for limit in most:
            times = np.full(len(left), np.inf)
            np.divide(limit[d] * (1 + 1e-12), limit[left], out=times, where=limit[left] > 0)
            stand_ins = np.minimum(stand_ins, np.floor(times))
        good = stand_ins >= 1
        left, stand_ins = left[good], stand_ins[good]
        served = np.flatnonzero(capacity[:, d])
        carried = stand_ins * capacity[np.ix_(served, left)] >= capacity[served, d][:, None]
        as_good = carried.all(0)
        for figure in by_bucket:
            as_good &= (figure[np.ix_(served, left)] >= figure[served, d][:, None]).all(0)
        kept[d] = not as_good.any()
    return np.flatnonzero(kept)
