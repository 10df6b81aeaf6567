"""A capacity question, with everything that the user left open filled in and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.plan import Assumption
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.solvers.capacity.problem import Objective

DEFAULT_PROFILES = "trtllm-composed"
DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_WORKLOAD = "chat"
DEFAULT_PERCENTILE = 90.0
DEFAULT_QUALITY = 0.99
OBJECTIVES = ("cost", "gpus")


@dataclass(frozen=True, slots=True)
class CapacityAsk:
    """A fleet is wanted that serves `rate_qps` requests/s of `workload` within `slos`.

    Attributes
    ----------
    models
        Models that may serve; quality is measured against the first at 16 bits.
    quality_floor
        Lowest admissible quality, as a fraction of the first model's 16-bit score.
    quantizations
        Admissible ones; ``None`` for all that the profiles hold.
    inventory
        GPUs to be had by name, infinite where the user set no number; ``None`` for all types without limit.
    prices
        The user's own $/h per GPU by name.
    spare
        Replicas, of any kind, whose loss the fleet must survive: 0 or 1.
    assumptions
        What the user did not say.
    """

    rate_qps: float
    slos: tuple[Slo, ...]
    models: tuple[Model, ...]
    workload: Workload
    quality_floor: float
    quantizations: tuple[Quantization, ...] | None
    inventory: Mapping[str, float] | None
    prices: Mapping[str, float]
    objective: Objective
    spare: int
    percentile: float
    profiles: str
    assumptions: tuple[Assumption, ...]

    @classmethod
    def of(
        cls,
        rate_qps: float,
        slos: Sequence[Slo] = (),
        *,
        models: Sequence[Model] = (),
        workload: Workload | None = None,
        quality_floor: float | None = None,
        quantizations: Sequence[Quantization] = (),
        inventory: Mapping[str, float] | None = None,
        prices: Mapping[str, float] | None = None,
        objective: str = "cost",
        spare: int = 0,
        percentile: float | None = None,
        profiles: str = DEFAULT_PROFILES,
    ) -> CapacityAsk:
        """Fill in what is open, and note each choice as an :class:`~qplan.core.plan.Assumption`.

        Raises
        ------
        InputError
            For a rate, quality floor, percentile, objective or spare that makes no sense.
        """
        if not 0 < rate_qps < float("inf"):
            raise InputError(f"--qps: {rate_qps:g} requests/s; expected more than 0")
        if quality_floor is not None and quality_floor < 0:
            raise InputError(f"--quality: {quality_floor:.4g}; expected a share such as 99%")
        if percentile is not None and not 0 < percentile < 100:
            raise InputError(f"--percentile: {percentile:g}; expected between 0 and 100")
        if objective not in OBJECTIVES:
            raise InputError(
                f"--objective: unknown '{objective}'; expected {' or '.join(OBJECTIVES)}"
                f"{nearest(objective, OBJECTIVES)}"
            )
        if spare not in (0, 1):
            raise InputError(f"--spare: {spare}; expected 0 or 1, the loss of any one replica")

        notes = []
        if not models:
            models = (Model.named(DEFAULT_MODEL),)
            notes.append(Assumption("model", DEFAULT_MODEL, "--model"))
        if workload is None:
            workload = _default_workload()
            lengths = f"{workload.mean_input_tokens:.0f} tokens in, {workload.mean_output_tokens:.0f} out on average"
            notes.append(Assumption("workload", f"{workload.name}: {lengths}", "--workload"))
        if quality_floor is None:
            quality_floor = DEFAULT_QUALITY
            floor = f"at least {quality_floor:.0%} of {models[0]} at 16 bits on {workload.task} tasks"
            notes.append(Assumption("quality floor", floor, "--quality"))
        default_percentile = percentile if percentile is not None else DEFAULT_PERCENTILE
        if percentile is None and any(slo.percentile is None for slo in slos):
            notes.append(Assumption("percentile of the SLOs", f"p{default_percentile:g}", "--percentile"))
        if not slos:
            notes.append(Assumption("SLOs", "none: any latency that does not grow without end", "--slo"))
        elif not any(slo.metric in ("tpot", "itl", "e2e") for slo in slos):
            notes.append(Assumption("speed of the stream", "no objective on TPOT", "--slo tpot=50ms"))
        if inventory is None:
            notes.append(Assumption("GPUs", "every type of the profiles, any number", "--gpus"))
        notes.append(Assumption("arrivals", "Poisson, split at random among the replicas", "--qps"))
        return cls(
            rate_qps,
            tuple(slo.at(default_percentile) for slo in slos),
            tuple(models),
            workload,
            quality_floor,
            tuple(quantizations) or None,
            inventory,
            prices or {},
            cast(Objective, objective),
            spare,
            default_percentile,
            profiles,
            tuple(notes),
        )

    def price(self, gpu: Gpu) -> Gpu:
        """Return `gpu` at the user's price, or at the catalogue's."""
        return gpu.priced(self.prices[gpu.name]) if gpu.name in self.prices else gpu


def _default_workload() -> Workload:
    workload = Workload.named(DEFAULT_WORKLOAD)
    assert workload is not None
    return workload
