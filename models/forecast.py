"""What one deployment is predicted to do at a load: latency, throughput, power, energy, quality, each with its doubt.

::

    step times ──► serving model ──► TTFT, TPOT, throughput ──► power model ──► W, J/token
    (profiled, or the surrogate's)                                 quality model ──► quality

Where a deployment was measured under load, what was measured answers (:mod:`qplan.models.fittedloads`), metric by
metric, with conformal intervals.

Where the error of a chain against real serving is known (a pack's card), the interval holds the truth as often as it
did there; where step times are the surrogate's, the interval is wider by what the surrogate missed on deployments
left out of its fit. Where nothing is known of the error there is no interval, and the forecast says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.plan import Prediction
from qplan.core.workload import Workload
from qplan.models.fitted import COVERAGE, Steps
from qplan.models.fittedloads import FittedLoads
from qplan.models.power.energy import energy
from qplan.models.quality import Quality, QualityModel
from qplan.models.sharing import SharingModel

PERCENTILES = (50.0, 90.0)
#: What is told of a deployment by name: the unit, and the metric of measured loads that it is.
MEASURED: Mapping[str, tuple[str, str]] = {
    "ttft_p50": ("s", "ttft_p50_s"),
    "ttft_p90": ("s", "ttft_p90_s"),
    "tpot_p50": ("s", "tpot_p50_s"),
    "tpot_p90": ("s", "tpot_p90_s"),
    "output_tokens_per_s": ("tokens/s", "output_tokens_per_s"),
    "power_w": ("W", "power_w"),
    "j_per_token": ("J/token", "j_per_output_token"),
}
#: Told beside them where no percentile was measured.
MEANS: Mapping[str, tuple[str, str]] = {"ttft_mean": ("s", "ttft_mean_s"), "tpot_mean": ("s", "tpot_mean_s")}


class StepsSource(Protocol):
    """What knows step times: :class:`qplan.models.fitted.Fitted`, or one that is calibrated."""

    @property
    def quality(self) -> QualityModel:
        """Quality of any model and quantization."""

    def steps_of(self, deployment: Deployment) -> Steps:
        """Return the step times of `deployment`, with what is known of their error."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One predicted number.

    Attributes
    ----------
    name, unit
        Such as ``ttft_p90`` in ``s``.
    prediction
        ``None`` where it is not known; `reason` then says why.
    provenance
        What it stands on, in words.
    extrapolates
        Whether it reaches beyond what was measured.
    """

    name: str
    unit: str
    prediction: Prediction | None
    provenance: str
    extrapolates: bool = False
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the quantity as plain data."""
        found = self.prediction
        bounded = found is not None and found.upper < np.inf
        return {
            "unit": self.unit,
            "value": None if found is None else found.value,
            "lower": found.lower if found is not None and bounded else None,
            "upper": found.upper if found is not None and bounded else None,
            "coverage": None if found is None else found.coverage,
            "provenance": self.provenance,
            "extrapolates": self.extrapolates,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Forecast:
    """All that is predicted of a deployment at a load.

    Attributes
    ----------
    saturation_qps
        Highest request rate at which the queue does not grow, or that was measured to keep its SLO; ``None`` where
        nobody has searched for it.
    rates
        Request rates between which curves over load can be drawn.
    """

    deployment: Deployment
    workload: Workload
    qps: float
    saturation_qps: float | None
    quantities: tuple[Quantity, ...]
    warnings: tuple[str, ...]
    rates: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as plain data."""
        one = self.deployment
        return {
            "schema_version": 1,
            "deployment": {
                "model": one.model.name,
                "quantization": str(one.quantization),
                "gpu": one.gpu.name,
                "tp": one.tp,
                "engine": one.engine,
                "engine_version": one.engine_version,
            },
            "workload": self.workload.name,
            "qps": self.qps,
            "saturation_qps": self.saturation_qps,
            "quantities": {quantity.name: quantity.to_json() for quantity in self.quantities},
            "warnings": list(self.warnings),
        }


def forecast(fitted: StepsSource | FittedLoads, deployment: Deployment, workload: Workload, qps: float) -> Forecast:
    """Predict `deployment` under Poisson arrivals of `workload` at `qps` requests/s.

    Raises
    ------
    InputError
        The deployment cannot run: no kernels, not enough memory, or requests longer than it takes; or it, its load or
        its lengths are too far from anything measured.
    """
    if isinstance(fitted, FittedLoads):
        return _from_loads(fitted, deployment, workload, qps)
    return _from_steps(fitted, deployment, workload, qps)


def _from_steps(fitted: StepsSource, deployment: Deployment, workload: Workload, qps: float) -> Forecast:
    reason = deployment.refusal()
    if reason is not None:
        raise InputError(f"{deployment}: {reason}")
    steps = fitted.steps_of(deployment)
    model = SharingModel.of([deployment], steps.times)
    if workload.longest > min(model.kv_tokens[0], model.max_context[0]):
        raise InputError(
            f"{deployment} takes requests of up to {min(model.kv_tokens[0], model.max_context[0]):.0f} tokens; the "
            f"longest of {workload.name} has {workload.longest:.0f}"
        )
    stable_qps = float(model.saturation_qps(workload, ())[0])
    warnings = list(steps.warnings)
    loaded = model.at(workload, np.array([qps]))
    beyond = None if qps < stable_qps else f"{qps:g} req/s is beyond saturation, {stable_qps:.3g} req/s"
    if beyond:
        warnings.append(f"{beyond}: queues grow without end")
    quantities = []
    for metric in ("ttft", "tpot"):
        for percentile in PERCENTILES:
            value = float(loaded.percentile(metric, percentile)[0])
            found = None if beyond else steps.latency(metric, value)
            name = f"{metric}_p{percentile:g}"
            quantities.append(Quantity(name, "s", found, steps.provenance, steps.extrapolates, beyond))
    tokens = float(loaded.output_tokens_per_s[0])
    # Below saturation a replica generates what is asked of it, whatever its step times are.
    certain = None if beyond else Prediction(tokens, tokens, tokens, None, "the offered load")
    quantities.append(Quantity("output_tokens_per_s", "tokens/s", certain, "the offered load", reason=beyond))
    burned = energy([deployment], steps.times, workload, np.array([qps]), loaded)
    for name, unit, found in (("power_w", "W", burned.power(0)), ("j_per_token", "J/token", burned.per_token(0))):
        quantities.append(
            Quantity(
                name,
                unit,
                found,
                burned.provenance[0],
                bool(burned.extrapolates[0]) or steps.extrapolates,
                burned.reasons[0] if found is None else None,
            )
        )
    grade = _quality(fitted.quality, deployment, workload)
    warnings += grade.warnings
    quantities.append(_graded(grade))
    rates = 0.05 * stable_qps, 0.95 * stable_qps
    return Forecast(deployment, workload, qps, stable_qps, tuple(quantities), tuple(dict.fromkeys(warnings)), rates)


def _from_loads(fitted: FittedLoads, deployment: Deployment, workload: Workload, qps: float) -> Forecast:
    if not fitted.has(deployment):
        reason = deployment.refusal()
        if reason is not None:
            raise InputError(f"{deployment}: {reason}")
    placed = fitted.place(deployment, workload, qps)
    found = fitted.at(placed, COVERAGE)
    quantities = []
    for name, (unit, metric) in {**MEASURED, **MEANS}.items():
        basis = f"{fitted.evidence} ({fitted.source})"
        if metric in found:
            prediction, extrapolates = found[metric]
            quantities.append(Quantity(name, unit, prediction, f"{basis}; {prediction.basis}", extrapolates))
        elif name in MEASURED:
            quantities.append(Quantity(name, unit, None, basis, reason=fitted.missing.get(metric, "not measured")))
    grade = _quality(fitted.quality, deployment, workload)
    warnings = (*placed.verdict.warnings, *grade.warnings)
    if placed.known is None:
        warnings = (f"{fitted.source} has no run of {deployment} with {workload.name}: told from others", *warnings)
    return Forecast(
        deployment,
        workload,
        qps,
        None if placed.known is None else placed.known.saturation_qps,
        (*quantities, _graded(grade)),
        tuple(dict.fromkeys(warnings)),
        fitted.rates(placed),
    )


def _quality(model: QualityModel, deployment: Deployment, workload: Workload) -> Quality:
    return model.quality(deployment.model.name, str(deployment.quantization), workload.task)


def _graded(grade: Quality) -> Quantity:
    kept = Prediction(grade.value, grade.lower, grade.upper, grade.coverage, grade.source)
    return Quantity("quality", "of 16 bits", kept, f"{grade.provenance}: {grade.source}", grade.provenance == "assumed")
