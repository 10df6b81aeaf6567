"""What a campaign is to measure: the plan, as read from its file.

A plan is a set of lists whose combinations are measured; :mod:`qplan.measure.campaign.grid` multiplies them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo

ORDERS = ("interleaved", "grouped")


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to serve.

    Attributes
    ----------
    name
        Name that observations carry.
    weights
        What the engines load: a path, a Hub id, ``smollm2``, or the address of a running server.
    context_tokens
        Longest sequence, prompt and output together.
    max_sequences
        Most sequences that are decoded together.
    checkpoints
        Weights that were quantized beforehand, by canonical quantization; they replace `weights` there.
    """

    name: str
    weights: str
    context_tokens: int = 2048
    max_sequences: int = 8
    checkpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """An engine by the name of its adapter, and settings beyond the adapter's own."""

    name: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A request mix, and how its requests arrive where it is a recorded trace.

    Attributes
    ----------
    name
        What observations carry: ``chat``, ``isl=32,osl=8``, a file's name.
    source
        What the prompts are made from: a mix, lengths, the path of a trace, or a data set's name.
    speedup
        A trace is replayed this much faster than it was recorded; ``None``: its lengths alone are used.
    """

    name: str
    source: str
    speedup: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """A load to offer: exactly one of a rate, a share of the saturation rate, and the search for that rate.

    Attributes
    ----------
    qps
        Requests per second.
    share
        Share of the deployment's saturation rate.
    """

    qps: float | None = None
    share: float | None = None

    @property
    def is_search(self) -> bool:
        """Whether the saturation rate is searched for."""
        return self.qps is None and self.share is None


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Longest times: of an engine's start, of one request, of a saturation search, and of a quality task."""

    start_s: float = 600.0
    request_s: float = 120.0
    saturation_s: float = 600.0
    quality_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class CampaignPlan:
    """A campaign.

    Attributes
    ----------
    gpu, devices
        Kind of the GPUs, and the indices of those to use; no indices on a CPU.
    quality_api
        How a model is asked in quality tasks: ``chat``, or ``completions`` where it follows no instructions.
    attainment
        Share of requests that must meet SLOs which name no percentile.
    duration_s, requests
        Length of a load run: a time, or a number of requests.
    warm_up_s
        Start of a run that is not measured.
    repeats
        Times that everything but quality is measured, each with engines started anew.
    order
        ``interleaved``: repeats are outermost and neighbours differ in quantization, so that a drift of the machine
        falls on all alike; ``grouped``: all repeats of a deployment in one start of its engine.
    phase_energy
        Whether every load has a companion that prefills alone, by which the energies of prefill and decode are told
        apart; it takes as long as a load.
    retries
        Times that a failed point is tried again.
    processes
        Load-generating processes.
    """

    name: str
    gpu: Gpu
    devices: tuple[int, ...]
    models: tuple[PlannedModel, ...]
    quantizations: tuple[Quantization, ...]
    engines: tuple[PlannedEngine, ...]
    tp: tuple[int, ...]
    traffic: tuple[Traffic, ...]
    loads: tuple[Load, ...]
    slos: tuple[Slo, ...]
    quality: tuple[str, ...] = ()
    quality_api: str = "chat"
    arrivals: str = "poisson"
    attainment: float = 0.95
    duration_s: float | None = 60.0
    requests: int | None = None
    warm_up_s: float = 5.0
    repeats: int = 1
    order: str = "interleaved"
    seed: int = 0
    energy: bool = True
    phase_energy: bool = True
    retries: int = 1
    processes: int = 1
    deadlines: Deadlines = Deadlines()
