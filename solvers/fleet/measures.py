"""What a fleet is weighed by: every measure, and every weighted sum of them, is a set of rates.

A measure asks so much for each GPU-hour held, each kWh and each dollar of start costs::

    cost     gpu_price[g, h] per GPU-hour   energy_price[h] per kWh   1 per $ of start_cost
    gpus     1 per GPU-hour
    energy                                  1 per kWh
    carbon                                  carbon[h] / 1000 per kWh

so weights, limits on measures (by their multipliers) and the power cap (kWh of one period) all become rates, and what
one replica, start or share adds is said once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.fleet.problem import FleetProblem

    Floats = NDArray[np.float64]

J_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """What each unit that a fleet uses is charged.

    Attributes
    ----------
    gpu_hour : ndarray of shape (G, H)
        For each GPU-hour held.
    kwh : ndarray of shape (H,)
    start : float
        For each $ of start costs.
    """

    gpu_hour: Floats
    kwh: Floats
    start: float

    def __add__(self, other: Rates) -> Rates:
        return Rates(self.gpu_hour + other.gpu_hour, self.kwh + other.kwh, self.start + other.start)

    def __mul__(self, factor: float) -> Rates:
        return Rates(self.gpu_hour * factor, self.kwh * factor, self.start * factor)


def rates(problem: FleetProblem, measure: str) -> Rates:
    """Return the rates of ``cost``, ``gpus``, ``energy`` or ``carbon``."""
    none, free = np.zeros(problem.gpu_price.shape), np.zeros(len(problem.hours))
    if measure == "cost":
        return Rates(problem.gpu_price, problem.energy_price, 1.0)
    if measure == "gpus":
        return Rates(none + 1.0, free, 0.0)
    return Rates(none, free + 1.0 if measure == "energy" else problem.carbon / 1000.0, 0.0)


def weighted(problem: FleetProblem, weights: Iterable[tuple[str, float]]) -> Rates:
    """Return the rates of a weighted sum of measures."""
    total = Rates(np.zeros(problem.gpu_price.shape), np.zeros(len(problem.hours)), 0.0)
    for measure, weight in weights:
        total += rates(problem, measure) * weight
    return total


def by_the_gpu(problem: FleetProblem) -> NDArray[np.bool_]:
    """Whether GPUs of a pool are paid for replica by replica: not committed, and not in nodes. Shape (G,)."""
    return np.asarray(~problem.committed & (problem.node_gpus == 1))


def per_replica(problem: FleetProblem, charged: Rates) -> Floats:
    """Return what one replica adds in a period that it serves; committed pools and nodes apart. Shape (D, H)."""
    return np.asarray((_gpus(problem, charged, by_the_gpu(problem)) + _idle(problem, charged)) * problem.hours)


def per_start(problem: FleetProblem, charged: Rates) -> Floats:
    """Return what one start adds; GPUs of committed pools are paid for already. Shape (D, H)."""
    running = _gpus(problem, charged, ~problem.committed) + _idle(problem, charged)
    return np.asarray(running * problem.start_s[:, None] / 3600.0 + charged.start * problem.start_cost[:, None])


def per_share(problem: FleetProblem, charged: Rates, h: int) -> Floats:
    """Return what all of a bucket's requests of one period add on each option, above idle. Shape (B, D)."""
    return np.asarray(problem.requests[:, [h]] * problem.dynamic_j * (charged.kwh[h] / J_PER_KWH))


def per_gpu_held(problem: FleetProblem, charged: Rates) -> Floats:
    """Return what holding one GPU of a pool through a period adds. Shape (G, H)."""
    return np.asarray(charged.gpu_hour * problem.hours)


def kwh_used(problem: FleetProblem, counts: Floats, starts: Floats, share: Floats) -> Floats:
    """Return the energy of each period in kWh, warm-up included. Shape (H,)."""
    dynamic = np.einsum("bh,bd,bdh->h", problem.requests, problem.dynamic_j, share) / J_PER_KWH
    idle = problem.idle_w @ (counts * problem.hours + starts * problem.start_s[:, None] / 3600.0) / 1000.0
    return np.asarray(idle + dynamic)


def mean_quality(problem: FleetProblem, share: Floats, buckets: NDArray[np.bool_]) -> float:
    """Return the mean quality over the requests of some buckets, marked (B,), and the horizon; nan without any."""
    requests = problem.requests * buckets[:, None]
    total = requests.sum()
    return float(np.einsum("bh,bd,bdh->", requests, problem.quality, share) / total) if total else np.nan


def measured(
    problem: FleetProblem, counts: NDArray[np.int64], starts: NDArray[np.int64], held: NDArray[np.int64], share: Floats
) -> dict[str, float]:
    """Return every measure of a fleet, computed from what it uses.

    Parameters
    ----------
    counts, starts : ndarray of shape (D, H)
    held : ndarray of shape (G, H)
        GPUs paid for while serving.
    share : ndarray of shape (B, D, H)
    """
    kwh = kwh_used(problem, counts.astype(float), starts.astype(float), share)
    warming = starts * (problem.gpus * problem.start_s / 3600.0 * ~problem.committed[problem.pool])[:, None]
    gpu_hours = held * problem.hours
    np.add.at(gpu_hours, problem.pool, warming)
    starting = float(problem.start_cost @ starts.sum(1))
    found = {}
    for measure in ("cost", "gpus", "energy", "carbon"):
        charged = rates(problem, measure)
        found[measure] = float((charged.gpu_hour * gpu_hours).sum() + charged.kwh @ kwh + charged.start * starting)
    found["quality"] = mean_quality(problem, share, np.ones(len(share), bool))
    return found


def _gpus(problem: FleetProblem, charged: Rates, of_pools: NDArray[np.bool_]) -> Floats:
    return np.asarray(charged.gpu_hour[problem.pool] * (problem.gpus * of_pools[problem.pool])[:, None])


def _idle(problem: FleetProblem, charged: Rates) -> Floats:
    return np.asarray(problem.idle_w[:, None] / 1000.0 * charged.kwh)
