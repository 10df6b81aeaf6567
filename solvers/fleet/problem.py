"""The question of a fleet by period on plain arrays: what is asked, and what is answered.

Indices throughout the package: ``k`` of K request classes, ``b`` of B buckets (a class's requests of about one input
and output length), ``d`` of D options (a deployment run on a pool), ``g`` of G pools (GPUs of one type bought in one
way), ``h`` of H periods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.solvers.arrays import checked, checked_whole
from qplan.solvers.capacity.problem import replicas_busy

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a fleet is weighed by, over the horizon: $, GPU-hours, kWh, kg CO2e.
MEASURES = ("cost", "gpus", "energy", "carbon")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FleetProblem:
    """Which replicas to run in each period for a given demand.

    Arrays may be given as anything NumPy reads and are stored as arrays; the problem is never changed.

    Attributes
    ----------
    classes, options, pools : tuple of str
        Names, K, D and G of them.
    bucket_class : ndarray of int, shape (B,)
        Class of each bucket.
    hours : ndarray of shape (H,)
        Length of each period in hours.
    rate_qps : ndarray of shape (B, H)
        Demand; a bucket may be without in some periods.
    capacity_qps : ndarray of shape (B, D)
        The most of one bucket alone that one replica carries within its class's SLOs, interruptions of spot GPUs
        taken off. 0: not eligible, be it too slow or below a floor on the quality of single requests.
    pool, gpus : ndarray of int, shape (D,)
        Pool of each option, and GPUs of one replica.
    gpu_price : ndarray of shape (G, H)
        $ per GPU-hour.
    committed : ndarray of bool, shape (G,)
        Reserved: the number of GPUs bought is decided once and paid for in every period, used or not.
    inventory : ndarray of shape (G,)
        GPUs to be had; infinite where unlimited.
    node_gpus : ndarray of int, shape (G,)
        GPUs are bought in whole nodes of this many, and no replica spans two nodes. 1: singly, in any number.
    idle_w : ndarray of shape (D,)
        Watts of one replica that is up, without load.
    dynamic_j : ndarray of shape (B, D)
        Joules of one request above idle.
    energy_price, carbon : ndarray of shape (H,)
        $/kWh; g CO2e per kWh. With a price, `cost` includes the electricity.
    power_cap_w
        Upper limit of each period's planned mean power; infinite: none.
    start_s : ndarray of shape (D,)
        Seconds from a start to serving, in which a replica is paid for and burns `idle_w`. Charged at the rates of
        the period that it serves first.
    start_cost : ndarray of shape (D,)
        $ of each start beside that.
    quality : ndarray of shape (B, D)
        As a fraction of the class's reference.
    mean_quality : ndarray of shape (K,)
        Least quality on average over the requests of a class and the horizon; 0: no floor.
    spare
        Any that many replicas of a period's fleet may be lost, and the rest still carries the demand.
    cyclic
        Whether the horizon repeats, so that period 0 follows the last; else nothing runs before period 0.
    objective : tuple of (str, float)
        Weighted sum of :data:`MEASURES` that is minimised.
    then : tuple of str
        Minimised in turn once the objective is proven; ``quality``, traffic-weighted over all classes, is maximised.
    at_most : mapping of str to float
        Upper limits on measures over the horizon; the one on ``quality`` is a lower limit.

    Raises
    ------
    InputError
        If shapes disagree or a figure is out of range; names the array and the entry.
    """

    classes: tuple[str, ...]
    options: tuple[str, ...]
    pools: tuple[str, ...]
    bucket_class: NDArray[np.int64]
    hours: NDArray[np.float64]
    rate_qps: NDArray[np.float64]
    capacity_qps: NDArray[np.float64]
    pool: NDArray[np.int64]
    gpus: NDArray[np.int64]
    gpu_price: NDArray[np.float64]
    committed: NDArray[np.bool_]
    inventory: NDArray[np.float64]
    node_gpus: NDArray[np.int64]
    idle_w: NDArray[np.float64]
    dynamic_j: NDArray[np.float64]
    energy_price: NDArray[np.float64]
    carbon: NDArray[np.float64]
    power_cap_w: float
    start_s: NDArray[np.float64]
    start_cost: NDArray[np.float64]
    quality: NDArray[np.float64]
    mean_quality: NDArray[np.float64]
    spare: int = 0
    cyclic: bool = True
    objective: tuple[tuple[str, float], ...] = (("cost", 1.0),)
    then: tuple[str, ...] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for names in ("classes", "options", "pools"):
            object.__setattr__(self, names, tuple(getattr(self, names)))
        k, d, g = self.classes, self.options, self.pools
        if not k or not d:
            raise InputError(f"a fleet problem needs classes and options; it has {len(k)} and {len(d)}")
        h = [f"period {i}" for i in range(np.size(self.hours))]
        b = [f"bucket {i}" for i in range(np.size(self.bucket_class))]
        arrays = {
            "hours": checked("hours", self.hours, (h,), above=0.0),
            "rate_qps": checked("rate_qps", self.rate_qps, (b, h), at_least=0.0),
            "capacity_qps": checked("capacity_qps", self.capacity_qps, (b, d), at_least=0.0),
            "gpu_price": checked("gpu_price", self.gpu_price, (g, h), at_least=0.0),
            "inventory": checked("inventory", self.inventory, (g,), at_least=0.0, infinite=True),
            "idle_w": checked("idle_w", self.idle_w, (d,), at_least=0.0),
            "dynamic_j": checked("dynamic_j", self.dynamic_j, (b, d), at_least=0.0),
            "energy_price": checked("energy_price", self.energy_price, (h,), at_least=0.0),
            "carbon": checked("carbon", self.carbon, (h,), at_least=0.0),
            "start_s": checked("start_s", self.start_s, (d,), at_least=0.0),
            "start_cost": checked("start_cost", self.start_cost, (d,), at_least=0.0),
            "quality": checked("quality", self.quality, (b, d), at_least=0.0),
            "mean_quality": checked("mean_quality", self.mean_quality, (k,), at_least=0.0),
            "bucket_class": checked_whole("bucket_class", self.bucket_class, (b,), at_least=0, below=len(k)),
            "pool": checked_whole("pool", self.pool, (d,), at_least=0, below=len(g)),
            "gpus": checked_whole("gpus", self.gpus, (d,), at_least=1),
            "node_gpus": checked_whole("node_gpus", self.node_gpus, (g,), at_least=1),
            "committed": checked_whole("committed", self.committed, (g,), at_least=0, below=2).astype(bool),
        }
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        self._check_measures()
        if not self.power_cap_w > 0:
            raise InputError(f"power_cap_w {self.power_cap_w:g}: expected more than 0 watts")
        if self.spare < 0:
            raise InputError(f"spare {self.spare}: expected 0 or more replicas to lose")

    def _check_measures(self) -> None:
        for name, weight in self.objective:
            _known("objective", name, MEASURES)
            if not 0 <= weight < np.inf:
                raise InputError(f"objective: weight {weight:g} of {name}; expected a finite number at least 0")
        if not any(weight > 0 for _, weight in self.objective):
            raise InputError("objective: expected at least one measure with a weight above 0")
        for name in self.then:
            _known("then", name, (*MEASURES, "quality"))
        for name, limit in self.at_most.items():
            _known("at_most", name, (*MEASURES, "quality"))
            if not limit >= 0:
                raise InputError(f"at_most: {name} {limit:g}; expected a number at least 0")

    @property
    def requests(self) -> NDArray[np.float64]:
        """Requests of each bucket in each period. Shape (B, H)."""
        return np.asarray(self.rate_qps * self.hours * 3600.0)

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """Whether an option can serve a bucket: it has capacity, and its replicas fit in a node. Shape (B, D)."""
        node = self.node_gpus[self.pool]
        return np.asarray((self.capacity_qps > 0) & ((node == 1) | (self.gpus <= node)))

    def load(self, h: int) -> NDArray[np.float64]:
        """Replicas that each bucket keeps busy if all of it goes to one option. Shape (B, D).

        0 where not eligible or without demand, else at least :data:`~qplan.solvers.capacity.problem.LEAST_LOAD`.
        """
        rate = self.rate_qps[:, [h]]
        return replicas_busy(rate, self.capacity_qps, self.eligible & (rate > 0))

    def at(self, h: int) -> FleetProblem:
        """Return the question of one period by itself: without starts, later measures, and limits over the horizon."""
        return replace(
            self,
            hours=self.hours[[h]],
            rate_qps=self.rate_qps[:, [h]],
            gpu_price=self.gpu_price[:, [h]],
            energy_price=self.energy_price[[h]],
            carbon=self.carbon[[h]],
            mean_quality=np.zeros(len(self.classes)),
            cyclic=True,
            then=(),
            at_most={},
        )

    @property
    def most_replicas(self) -> NDArray[np.float64]:
        """Replicas of each option beyond which more are of no use in any period, or not to be had. Shape (D,).

        An option that carries all it is eligible for in the busiest period, with the spare, has enough: to keep
        more running through a quieter period saves no start that is ever needed.
        """
        periods = range(len(self.hours))
        enough = np.max([np.ceil(self.load(h).sum(0) - 1e-9) for h in periods], axis=0) + self.spare
        node, stock = self.node_gpus[self.pool], self.inventory[self.pool]
        in_node = np.maximum(node // self.gpus, node == 1)
        nodes = np.minimum(stock, enough * self.gpus * node) // np.where(node == 1, self.gpus, node)
        return np.asarray(np.minimum(enough, nodes * in_node))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FleetResult:
    """A fleet by period and how the demand is spread over it.

    Attributes
    ----------
    status
        ``optimal``: proven to the gap that was asked for. ``feasible``: a limit came before the proof.
        ``infeasible``: proven that no fleet does it. ``no-solution``: a limit came before any fleet was found.
    counts, starts : ndarray of int, shape (D, H)
        Replicas that serve, and those started for the period; all zero without a fleet.
    bought : ndarray of int, shape (G,)
        GPUs of committed pools; 0 for the others.
    held : ndarray of int, shape (G, H)
        GPUs paid for: whole nodes, and all that is bought of committed pools.
    share : ndarray of shape (B, D, H)
        Fraction of each bucket that each option serves; sums to 1 over the options where there is demand.
    measures : mapping of str to float
        cost, gpus, energy, carbon and quality over the horizon; empty without a fleet.
    objective, bound, gap
        The weighted sum; what no fleet undercuts; ``(objective - bound) / objective``. None where there is none.
    seconds
        Wall time of everything.
    backend
        Name of the solver backend.
    """

    status: Literal["optimal", "feasible", "infeasible", "no-solution"]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    bought: NDArray[np.int64]
    held: NDArray[np.int64]
    share: NDArray[np.float64]
    measures: Mapping[str, float]
    objective: float | None
    bound: float | None
    gap: float | None
    seconds: float
    backend: str


def _known(field: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise InputError(f"{field}: unknown '{name}'; expected {', '.join(choices)}{nearest(name, choices)}")
