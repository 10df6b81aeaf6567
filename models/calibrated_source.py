"""Where plans and simulations take step times from: a pack, a store, or a model that ``qplan fit`` saved.

A pack or store gives the times of the deployments that it holds. A saved model gives those of the deployments that it
was fitted to; one that is calibrated also those that were measured, under the engine that they were measured on, and
all of them corrected, each with its own error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.models.profiled import COLUMNS, Profiled, deployment_of, profiled
from qplan.profiles.sources import read_profiles

if TYPE_CHECKING:
    from qplan.models.calibrated import Calibrated
    from qplan.models.fitted import Fitted
    from qplan.models.power.curves import Ratio

SUFFIX = ".qplan"


@dataclass(frozen=True, slots=True)
class Source:
    """Step times of D deployments, and how far the latencies from them are off.

    Attributes
    ----------
    name
        Of the pack, store or model, for messages.
    found
        ``None`` where there are no step times of the models asked for.
    errors : D
        Measured over predicted latency of each deployment, as a pack's card has it (``known_error``); ``None`` where
        nobody measured.
    """

    name: str
    found: Profiled | None
    errors: tuple[Mapping[str, Any] | None, ...]

    @property
    def known_error(self) -> Mapping[str, Any] | None:
        """The errors of all deployments together: the widest; ``None`` where one is not known."""
        known = [error for error in self.errors if error is not None]
        if not known or len(known) < len(self.errors):
            return None
        ratios = [error["measured_over_predicted"] for error in known]
        return {
            "coverage": known[0]["coverage"],
            "measured_over_predicted": {
                metric: {
                    "lower": min(one[metric]["lower"] for one in ratios),
                    "upper": max(one[metric]["upper"] for one in ratios),
                }
                for metric in ("ttft", "tpot")
            },
            "gpus": sorted({gpu for error in known for gpu in error["gpus"]}),
        }


def read_source(profiles: str, models: Collection[str]) -> Source:
    """Read the step times of `models` from a pack by name or path, a store by URL or file, or a saved model.

    Raises
    ------
    InputError, StoreError
        There is no such pack, store or model, it cannot be read, or a model was not saved with step times.
    """
    if profiles.endswith(SUFFIX):
        from qplan.models.surrogates import open_fitted  # and all that it loads: packs are planned from without it

        steps = open_fitted(Path(profiles)).steps
        if steps is None:
            raise InputError(f"{profiles}: holds measured loads and no step times; plans need a fit to step times")
        return _saved(steps, models)
    pack = read_profiles(profiles, models, COLUMNS, as_stored=True)
    found = profiled(pack.table, pack.card.name)
    count = 0 if found is None else len(found.deployments)
    return Source(pack.card.name, found, (pack.card.known_error,) * count)


def _saved(steps: Fitted | Calibrated, models: Collection[str]) -> Source:
    from qplan.models.fitted import Fitted

    if isinstance(steps, Fitted):
        deployments = _fitted(steps, models, steps.source)
        errors = (_as_card(steps.latency_error, sorted(steps.gpus)),) * len(deployments)
        provenance = (f"{steps.evidence} ({steps.source})",) * len(deployments)
        times = steps.steps.step_times(deployments) if deployments else None
    else:
        deployments = _measured(steps, models)
        gpus = sorted({branch[0] for branch in steps.systems.measured})
        errors = tuple(_as_card(steps.latency_error(one), gpus) for one in deployments)
        provenance = tuple(steps.provenance(one) for one in deployments)
        times = steps.step_times(deployments) if deployments else None
    found = None if times is None else Profiled(deployments, times, provenance)
    return Source(steps.source, found, errors)


def _fitted(steps: Fitted, models: Collection[str], where: str) -> tuple[Deployment, ...]:
    """Return the deployments of `models` that were fitted themselves."""
    from qplan.models.steps.surrogate import LEVELS

    whole = max(LEVELS)
    return tuple(
        deployment_of((model, quantization, gpu, tp, engine, version), where)
        for gpu, engine, version, _, quantization, model, tp in sorted(
            branch for branch in steps.steps.factors if len(branch) == whole
        )
        if model in models
    )


def _measured(steps: Calibrated, models: Collection[str]) -> tuple[Deployment, ...]:
    """Return the deployments that were fitted, those of measured systems under the engines measured, and theirs."""
    engines: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for gpu, engine, version, model, quantization in steps.systems.measured:
        engines.setdefault((gpu, model, quantization), []).append((engine, version))
    found: dict[Deployment, None] = {}
    for one in _fitted(steps.prior, models, steps.source):
        own = engines.get((str(one.gpu), str(one.model), str(one.quantization)))
        for engine, version in own or [(one.engine, one.engine_version)]:
            found[replace(one, engine=engine, engine_version=version)] = None
    for branch in steps.systems.deployments:
        gpu, engine, version, model, quantization, tp = branch
        if model in models:
            key = (model, quantization, gpu, tp.removeprefix("TP"), engine, version)
            found[deployment_of(key, steps.measured_in)] = None
    return tuple(found)


def _as_card(error: Mapping[str, Ratio], gpus: Collection[str]) -> dict[str, Any] | None:
    """Return ranges of measured over predicted latency as a pack's card has them; ``None`` where they are open."""
    if set(error) != {"ttft", "tpot"} or any(ratio.upper == float("inf") for ratio in error.values()):
        return None
    return {
        "coverage": 0.9,
        "measured_over_predicted": {
            metric: {"lower": ratio.lower, "upper": ratio.upper} for metric, ratio in error.items()
        },
        "gpus": list(gpus),
    }
