"""What one deployment is predicted to do at a load: latency, throughput, power, energy, quality, each with its doubt.

::

    step times ──► serving model ──► TTFT, TPOT, throughput ──► power model ──► W, J/token
    (profiled, or the surrogate's)                                 quality model ──► quality

Where the error of a chain against real serving is known (a pack's card), the interval holds the truth as often as it
did there; where step times are the surrogate's, the interval is wider by what the surrogate missed on deployments
left out of its fit. Where nothing is known of the error there is no interval, and the forecast says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.plan import Prediction
from qplan.core.workload import Workload
from qplan.models.fitted import Fitted
from qplan.models.power.energy import energy
from qplan.models.sharing import SharingModel

PERCENTILES = (50.0, 90.0)


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
        Highest request rate at which the queue does not grow.
    """

    deployment: Deployment
    workload: Workload
    qps: float
    saturation_qps: float
    quantities: tuple[Quantity, ...]
    warnings: tuple[str, ...]

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


def forecast(fitted: Fitted, deployment: Deployment, workload: Workload, qps: float) -> Forecast:
    """Predict `deployment` under Poisson arrivals of `workload` at `qps` requests/s.

    Raises
    ------
    InputError
        The deployment cannot run: no kernels, not enough memory, or requests longer than it takes.
    """
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
    grade = fitted.quality.quality(deployment.model.name, str(deployment.quantization), workload.task)
    warnings += grade.warnings
    kept = Prediction(grade.value, grade.lower, grade.upper, grade.coverage, grade.source)
    quantities.append(
        Quantity("quality", "of 16 bits", kept, f"{grade.provenance}: {grade.source}", grade.provenance == "assumed")
    )
    return Forecast(deployment, workload, qps, stable_qps, tuple(quantities), tuple(dict.fromkeys(warnings)))
