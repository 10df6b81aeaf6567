"""The deployments that could serve an ask: which are eligible, what each could take, and why the others are out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplan.core.deployment import Deployment
from qplan.core.errors import InfeasibleError, InputError, nearest
from qplan.core.slo import Slo
from qplan.core.units import format_duration
from qplan.models.calibrated_source import read_source
from qplan.models.quality import Quality, quality
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import StepTimes
from qplan.solvers.capacity.ask import CapacityAsk

Floats = NDArray[np.float64]
_MORE_MEMORY = ("--gpus with more memory or more of them", "--quant with fewer bits")
_NEXT_TO_NO_LOAD = 1e-6  # share of the saturation rate


@dataclass(frozen=True, slots=True)
class Candidates:
    """D eligible deployments; arrays and tuples are (D,).

    Attributes
    ----------
    saturation_qps
        Highest rate of one replica within the SLOs; all above 0.
    errors, known_error
        How far the latencies of each, and of all profiles, are off, as a pack's card has it; ``None``: not known.
    rejected
        How many other deployments of the profiles are out, by reason.
    """

    deployments: tuple[Deployment, ...]
    steps: StepTimes
    quality: tuple[Quality, ...]
    saturation_qps: Floats
    provenance: tuple[str, ...]
    errors: tuple[Mapping[str, Any] | None, ...]
    known_error: Mapping[str, Any] | None
    rejected: Mapping[str, int]


def candidates(ask: CapacityAsk) -> Candidates:
    """Find the deployments that may serve `ask`.

    Raises
    ------
    InputError
        When the profiles hold nothing of a model, quantization or GPU that the ask names.
    InfeasibleError
        When no deployment is left: constraint ``memory``, ``quality`` or ``slo``, with the nearest feasible change.
    """
    read = read_source(ask.profiles, [model.name for model in ask.models])
    source, found = read.name, read.found
    if found is None:
        raise InputError(
            f"--profiles: {source} has no step times of {', '.join(map(str, ask.models))}; "
            "plans need prefill and decode rows"
        )
    deployments = tuple(replace(one, gpu=ask.price(one.gpu)) for one in found.deployments)
    out: Counter[str] = Counter()
    named = _named(ask, deployments, out)
    refused = {i: reason for i in named if (reason := deployments[i].refusal()) is not None}
    out["does not fit the GPU's memory"] += len(refused)
    running = [i for i in named if i not in refused]
    if not running:
        raise InfeasibleError(
            f"no deployment fits: {next(iter(refused.values()))}", constraint="memory", nearest=_MORE_MEMORY
        )
    running = _to_be_had(ask, deployments, running, out)

    steps = found.steps.take(np.array(running))
    deployments = tuple(deployments[i] for i in running)
    grades = tuple(
        quality(one.model.name, str(one.quantization), ask.workload.task, ask.models[0].name) for one in deployments
    )
    good = np.array([grade.value for grade in grades]) >= ask.quality_floor - 1e-9
    rates = np.zeros(len(deployments))
    if good.any():
        model = SharingModel.of([deployments[i] for i in np.flatnonzero(good)], steps.take(np.flatnonzero(good)))
        rates[good] = model.saturation_qps(ask.workload, ask.slos)
    fast = rates > 0
    out[f"below the quality floor of {ask.quality_floor:.1%}"] += int((~good).sum())
    out["cannot meet the SLOs or hold the longest request"] += int((good & ~fast).sum())
    chosen = np.flatnonzero(fast)
    if not len(chosen):
        model = SharingModel.of(deployments, steps)
        raise _no_candidate(ask, model, grades, good, model.saturation_qps(ask.workload, ask.slos) > 0)
    return Candidates(
        tuple(deployments[i] for i in chosen),
        steps.take(chosen),
        tuple(grades[i] for i in chosen),
        rates[chosen],
        tuple(found.provenance[running[i]] for i in chosen),
        tuple(read.errors[running[i]] for i in chosen),
        read.known_error,
        {reason: count for reason, count in out.items() if count},
    )


def _named(ask: CapacityAsk, deployments: Sequence[Deployment], out: Counter[str]) -> list[int]:
    """Return the deployments whose quantization and GPU the ask admits; FP16 and BF16 stand for each other."""
    kept = list(range(len(deployments)))
    if ask.quantizations is not None:
        wanted = {_without_16_bit_kind(str(quantization)) for quantization in ask.quantizations}
        held = {_without_16_bit_kind(str(one.quantization)) for one in deployments}
        for name in sorted(wanted - held):
            raise InputError(
                f"--quant: {ask.profiles} has no {name} of {', '.join(map(str, ask.models))}; "
                f"it has {', '.join(sorted(held))}{nearest(name, held)}"
            )
        kept = [i for i in kept if _without_16_bit_kind(str(deployments[i].quantization)) in wanted]
        out["not among --quant"] += len(deployments) - len(kept)
    if ask.inventory is not None:
        types = {one.gpu.name for one in deployments}
        for name in sorted(set(ask.inventory) - types):
            raise InputError(f"--gpus: {ask.profiles} has no profile on {name}; it has {', '.join(sorted(types))}")
        before = len(kept)
        kept = [i for i in kept if deployments[i].gpu.name in ask.inventory]
        out["on other GPUs than --gpus"] += before - len(kept)
    if not kept:
        raise InfeasibleError(
            "the profiles hold no deployment of these models and quantizations on these GPUs: the weights do not "
            "fit, or the GPU lacks the kernels",
            constraint="memory",
            nearest=_MORE_MEMORY,
        )
    return kept


def _to_be_had(ask: CapacityAsk, deployments: Sequence[Deployment], among: list[int], out: Counter[str]) -> list[int]:
    """Return those of which the inventory holds at least one replica."""
    if ask.inventory is None:
        return among
    kept = [i for i in among if deployments[i].tp <= ask.inventory[deployments[i].gpu.name]]
    out["one replica takes more GPUs than there are"] += len(among) - len(kept)
    if not kept:
        fewest = min((deployments[i] for i in among), key=lambda one: one.tp)
        raise InfeasibleError(
            "the inventory holds no single replica: each takes more GPUs than there are",
            constraint="inventory",
            nearest=(f"--gpus {fewest.gpu}={fewest.tp}",),
        )
    return kept


def _without_16_bit_kind(name: str) -> str:
    return name.replace("FP16", "BF16")


def _no_candidate(
    ask: CapacityAsk, model: SharingModel, grades: Sequence[Quality], good: NDArray[np.bool_], fast: NDArray[np.bool_]
) -> InfeasibleError:
    """Say which of quality and SLO leaves no deployment, and how far each would have to move."""
    best_of = np.array([grade.value for grade in grades])
    if not good.any() or (fast.any() and not ask.slos):
        best = float(best_of.max())
        return InfeasibleError(
            f"no deployment reaches the quality floor of {ask.quality_floor:.1%}; the best has {best:.1%} of "
            f"{ask.models[0]} at 16 bits on {ask.workload.task} tasks",
            constraint="quality",
            nearest=(f"--quality {_floor_percent(best)}",),
        )
    slots = np.minimum(model.kv_tokens, model.max_context)
    if (slots[good] < ask.workload.longest).all():
        return InfeasibleError(
            f"no deployment holds the longest request of {ask.workload.name}, {ask.workload.longest:.0f} tokens; the "
            f"largest takes {slots[good].max():.0f}",
            constraint="memory",
            nearest=(f"--workload with requests of at most {slots[good].max():.0f} tokens",),
        )
    slower = nearest_slos(ask, model, good)
    changes = [" ".join(f"--slo {slo}" for slo in slower)]
    if fast.any():
        changes.append(f"--quality {_floor_percent(float(best_of[fast].max()))}")
    fastest = ", ".join(f"{slo.metric} {format_duration(slo.threshold_s)} at p{slo.percentile:g}" for slo in slower)
    return InfeasibleError(
        f"no deployment meets {', '.join(map(str, ask.slos))} on {ask.workload.name} even without load; "
        f"the nearest reaches {fastest}",
        constraint="slo",
        nearest=changes,
    )


def nearest_slos(ask: CapacityAsk, model: SharingModel, among: NDArray[np.bool_]) -> tuple[Slo, ...]:
    """Return the SLOs of `ask` loosened just enough for the deployment that misses them least, at next to no load."""
    light = model.saturation_qps(ask.workload, ()) * _NEXT_TO_NO_LOAD
    replicas = model.at(ask.workload, light)
    reached = np.stack([replicas.percentile(slo.metric, slo.percentile or 50) for slo in ask.slos])
    thresholds = np.array([slo.threshold_s for slo in ask.slos])[:, None]
    worst = np.where(among, (reached / thresholds).max(axis=0), np.inf)
    closest = reached[:, int(worst.argmin())]
    return tuple(
        replace(slo, threshold_s=_round_up(value)) if value > slo.threshold_s else slo
        for slo, value in zip(ask.slos, closest, strict=True)
    )


def _round_up(seconds: float) -> float:
    """Round up to two digits, a little above, so that the printed threshold can be met."""
    digit = 10.0 ** (np.floor(np.log10(seconds)) - 1)
    return float(f"{np.ceil(seconds * 1.02 / digit) * digit:.3g}")


def _floor_percent(value: float) -> str:
    return f"{np.floor(value * 1000) / 10:g}%"
