"""What a fleet is planned for: request classes by the hour, and the GPUs, prices and limits to serve them with.

A horizon is H periods that repeat (a day, as a rule): what holds by the hour is a tuple of H figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.plan import Assumption
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.workload import Workload

#: What a plan can minimise or bound, and the unit of each over the horizon.
MEASURES: Mapping[str, str] = {"cost": "$", "gpus": "GPU-hours", "energy": "kWh", "carbon": "kg CO2e"}

#: Requests of each hour of a day over those of the busiest: one trough at night, one peak in the afternoon.
DIURNAL = tuple(
    round(factor, 3)
    for factor in (
        *(0.45, 0.36, 0.30, 0.27, 0.26, 0.28, 0.35, 0.47, 0.62, 0.77, 0.88, 0.94),
        *(0.96, 0.98, 1.00, 1.00, 0.97, 0.93, 0.89, 0.86, 0.82, 0.75, 0.66, 0.55),
    )
)


@dataclass(frozen=True, slots=True)
class Trace:
    """N requests as they came, in order.

    Attributes
    ----------
    file
        That they are recorded in.
    times_s : (N,)
        Seconds from the first.
    lengths : (N,) or ()
        Input tokens, output tokens, and the index of the length bucket of the class's workload that the request is
        in; nothing where the class has its lengths from elsewhere.
    by_period
        Whether the horizon's periods are equal parts of the trace in turn; else each may be any part of it.
    """

    file: str
    times_s: tuple[float, ...]
    lengths: tuple[tuple[int, int, int], ...]
    by_period: bool


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests of one kind: how many, what they look like, and what they are promised.

    Attributes
    ----------
    slos
        Each with its percentile.
    models
        Models that may serve; quality is a fraction of the first one's at 16 bits.
    quality_floor, mean_quality
        Lowest quality of any request, and of the mean over all of them; no floor on the mean is ``None``.
    rate_qps : (H,)
        Requests/s of each period.
    quantizations
        Admissible ones; ``None`` for all that the profiles hold.
    trace
        Recorded requests that rate, lengths or both come from, if any; its gaps are scaled to `rate_qps`.
    """

    name: str
    workload: Workload
    slos: tuple[Slo, ...]
    models: tuple[Model, ...]
    quality_floor: float
    mean_quality: float | None
    rate_qps: tuple[float, ...]
    quantizations: tuple[Quantization, ...] | None = None
    trace: Trace | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs of one type that are bought in one way.

    Attributes
    ----------
    count
        GPUs to be had; infinite without a limit.
    price_per_gpu_hour : (H,)
        US dollars in each period.
    committed
        Reserved: what is bought is paid for in every period, used or not.
    availability
        Share of the time that a GPU of the pool is really there: below 1 for spot.
    node_gpus
        GPUs come in whole machines of this many, paid for by the machine; 1: singly.
    """

    name: str
    gpu: Gpu
    count: float
    price_per_gpu_hour: tuple[float, ...]
    committed: bool = False
    availability: float = 1.0
    node_gpus: int = 1


@dataclass(frozen=True, slots=True)
class Demand:
    """What to plan for; see the classes above. Per-period figures are (H,).

    Attributes
    ----------
    hours
        Length of each period.
    pools
        ``()`` stands for every GPU type of the profiles, without limit, at the catalogue's price.
    energy_price, carbon
        $/kWh, and grams of CO2e per kWh.
    power_cap_w
        Limit on the mean power of each period in watts; infinite without one.
    spare
        Replicas, of any kind, whose loss the fleet must survive in every period.
    start_s, start_cost
        Seconds from a replica's start to its first request, paid for and burning idle power; dollars on top.
    objective
        Measures of :data:`MEASURES` and their weights, of which the sum is minimised.
    then
        Measures that are minimised after it, in turn, among the plans that are equally good so far; ``quality`` is
        maximised.
    at_most
        Limits over the horizon by measure; ``quality`` is a least mean.
    profiles
        Pack by name or path, or the URL of a store.
    assumptions
        What the user did not say.
    prices
        The user's own $/h by GPU name, for the types that ``()`` stands for.
    """

    name: str
    classes: tuple[RequestClass, ...]
    hours: tuple[float, ...]
    pools: tuple[Pool, ...]
    energy_price: tuple[float, ...]
    carbon: tuple[float, ...]
    power_cap_w: float
    spare: int
    start_s: float
    start_cost: float
    objective: tuple[tuple[str, float], ...]
    profiles: str
    then: tuple[str, ...] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    prices: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        periods = len(self.hours)
        if not self.classes or not periods:
            raise InputError(f"demand {self.name}: it has no request class or no period")
        by_period = {
            **{f"the rate of {one.name}": one.rate_qps for one in self.classes},
            **{f"the price of {pool.name}": pool.price_per_gpu_hour for pool in self.pools},
            "the energy price": self.energy_price,
            "the carbon intensity": self.carbon,
        }
        for what, figures in by_period.items():
            if len(figures) != periods:
                raise InputError(
                    f"demand {self.name}: {what} has {len(figures)} figures; expected {periods}, one a period"
                )
            if not all(0 <= figure < float("inf") for figure in figures):
                raise InputError(f"demand {self.name}: {what} holds a figure below 0, or none at all")
        if not any(weight > 0 for _, weight in self.objective):
            raise InputError(f"demand {self.name}: no measure to minimise; expected one of {', '.join(MEASURES)}")
        for measure, _ in self.objective:
            self._check_measure(measure, MEASURES)
        for measure in (*self.then, *self.at_most):
            self._check_measure(measure, (*MEASURES, "quality"))

    def _check_measure(self, name: str, choices: Iterable[str]) -> None:
        if name not in choices:
            raise InputError(
                f"demand {self.name}: unknown measure '{name}'; expected one of {', '.join(choices)}"
                f"{nearest(name, choices)}"
            )

    @property
    def peak_qps(self) -> float:
        """Requests/s of all classes in the busiest period."""
        return max(self.total_qps)

    @property
    def total_qps(self) -> tuple[float, ...]:
        """Requests/s of all classes in each period, (H,)."""
        return tuple(sum(rates) for rates in zip(*(one.rate_qps for one in self.classes), strict=True))

    def scaled(self, factor: float) -> Demand:
        """Return the same demand with `factor` times the requests."""
        classes = (replace(one, rate_qps=tuple(rate * factor for rate in one.rate_qps)) for one in self.classes)
        return replace(self, classes=tuple(classes))

    @property
    def horizon_hours(self) -> float:
        """Hours of all periods."""
        return sum(self.hours)
