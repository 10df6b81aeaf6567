"""The capacity question on plain arrays: what is asked, and what is answered.

Indices throughout the package: ``k`` of K request classes, ``d`` of D deployments, ``g`` of G GPU types.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.solvers.arrays import checked, checked_whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Objective = Literal["cost", "gpus"]

#: Replicas that demand keeps busy at least where it is served: solvers take less than their tolerance for nothing, and
#: what is served at all needs a replica.
LEAST_LOAD = 1e-5


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CapacityProblem:
    """Which replicas to run for a given demand.

    Arrays may be given as anything NumPy reads and are stored as arrays; the problem is never changed.

    Attributes
    ----------
    classes, deployments, gpu_types : tuple of str
        Names, K, D and G of them.
    rate_qps : ndarray of shape (K,)
        Demand of each class, above 0.
    capacity_qps : ndarray of shape (K, D)
        The most of one class alone that one replica carries within the SLOs. 0: not eligible.
    gpu_type : ndarray of int, shape (D,)
        Index of the GPU type that the deployment runs on.
    gpus : ndarray of int, shape (D,)
        GPUs of one replica (its tensor parallelism).
    cost_per_hour : ndarray of shape (D,)
        $/h of one replica.
    quality : ndarray of shape (K, D)
        Quality as a fraction of FP16's. It only breaks ties: floors belong in `capacity_qps`.
    inventory : ndarray of shape (G,)
        GPUs to be had of each type; infinite where unlimited.
    objective
        ``cost``: fewest $/h. ``gpus``: fewest GPUs.
    spare
        1: the fleet still carries the demand after the loss of any one replica.

    Raises
    ------
    InputError
        If shapes disagree or a figure is out of range; names the array and the entry.
    """

    classes: tuple[str, ...]
    deployments: tuple[str, ...]
    gpu_types: tuple[str, ...]
    rate_qps: NDArray[np.float64]
    capacity_qps: NDArray[np.float64]
    gpu_type: NDArray[np.int64]
    gpus: NDArray[np.int64]
    cost_per_hour: NDArray[np.float64]
    quality: NDArray[np.float64]
    inventory: NDArray[np.float64]
    objective: Objective = "cost"
    spare: int = 0

    def __post_init__(self) -> None:
        for names in ("classes", "deployments", "gpu_types"):
            object.__setattr__(self, names, tuple(getattr(self, names)))
        k, d, g = self.classes, self.deployments, self.gpu_types
        if not k or not d:
            raise InputError(f"a capacity problem needs classes and deployments; it has {len(k)} and {len(d)}")
        arrays = {
            "rate_qps": checked("rate_qps", self.rate_qps, (k,), above=0.0),
            "capacity_qps": checked("capacity_qps", self.capacity_qps, (k, d), at_least=0.0),
            "gpu_type": checked_whole("gpu_type", self.gpu_type, (d,), at_least=0, below=len(g)),
            "gpus": checked_whole("gpus", self.gpus, (d,), at_least=1),
            "cost_per_hour": checked("cost_per_hour", self.cost_per_hour, (d,), at_least=0.0),
            "quality": checked("quality", self.quality, (k, d), at_least=0.0),
            "inventory": checked("inventory", self.inventory, (g,), at_least=0.0, infinite=True),
        }
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        if self.objective not in ("cost", "gpus"):
            hint = nearest(str(self.objective), ["cost", "gpus"])
            raise InputError(f"objective '{self.objective}': expected cost or gpus{hint}")
        if self.spare not in (0, 1):
            raise InputError(f"spare {self.spare}: expected 0 or 1 replicas to lose")

    @property
    def load(self) -> NDArray[np.float64]:
        """Replicas that each class keeps busy if all of it goes to one deployment; 0 where not eligible. (K, D).

        At least :data:`LEAST_LOAD` where eligible.
        """
        return replicas_busy(self.rate_qps[:, None], self.capacity_qps, self.capacity_qps > 0)

    @property
    def price(self) -> NDArray[np.float64]:
        """What one replica of each deployment adds to the objective: $/h or GPUs. Shape (D,)."""
        return self.cost_per_hour if self.objective == "cost" else self.gpus.astype(float)

    @property
    def most_replicas(self) -> NDArray[np.float64]:
        """Replicas of each deployment beyond which more are of no use, or not to be had. Shape (D,).

        One deployment that carries every class it is eligible for, with the spare, has enough.
        """
        enough = np.ceil(self.load.sum(0) - 1e-9) + self.spare
        available = np.floor(self.inventory[self.gpu_type] / self.gpus + 1e-9)
        return np.asarray(np.minimum(enough, available))

    def without(self, deployments: ArrayLike) -> CapacityProblem:
        """Return the problem in which the marked deployments serve nothing.

        Parameters
        ----------
        deployments : array_like of bool, shape (D,)
        """
        return replace(self, capacity_qps=np.where(np.asarray(deployments), 0.0, self.capacity_qps))

    def gpus_used(self, counts: ArrayLike) -> NDArray[np.int64]:
        """Return the GPUs of each type that `counts` replicas of each deployment take, shape (G,)."""
        used = np.bincount(self.gpu_type, weights=self.gpus * np.asarray(counts), minlength=len(self.gpu_types))
        return used.astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CapacityResult:
    """A fleet and how the demand is spread over it.

    Attributes
    ----------
    status
        ``optimal``: proven. ``feasible``: a limit came before the proof. ``infeasible``: proven that no fleet
        does it. ``no-solution``: a limit came before any fleet was found.
    counts : ndarray of int, shape (D,)
        Replicas; all zero without a fleet.
    assignment : ndarray of shape (K, D)
        Fraction of each class that each deployment serves; rows sum to 1.
    utilisation : ndarray of shape (D,)
        Fraction of the deployment's replicas that the assignment keeps busy; 0 where there are none.
    objective, bound, gap
        $/h or GPUs; what the solver proved that no fleet undercuts; ``(objective - bound) / objective``. None
        where there is none.
    seconds
        Wall time, tie-breaks included.
    backend
        Name of the solver backend.
    """

    status: Literal["optimal", "feasible", "infeasible", "no-solution"]
    counts: NDArray[np.int64]
    assignment: NDArray[np.float64]
    utilisation: NDArray[np.float64]
    objective: float | None
    bound: float | None
    gap: float | None
    seconds: float
    backend: str


def replicas_busy(
    rate_qps: NDArray[np.float64], capacity_qps: NDArray[np.float64], serves: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the replicas that demand keeps busy, at least :data:`LEAST_LOAD`; 0 where they do not serve it.

    Parameters
    ----------
    rate_qps : ndarray of shape (K, 1)
    capacity_qps, serves : ndarray of shape (K, D)
    """
    busy = np.divide(rate_qps, capacity_qps, out=np.zeros(serves.shape), where=serves)
    return np.where(serves, np.maximum(busy, LEAST_LOAD), 0.0)
