"""What a study expects before it measures: from other observations, or from what `qplan predict` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.quantization import Quantization
from qplan.core.workload import Workload
from qplan.solvers.tuning.objectives import Objective
from qplan.solvers.tuning.space import Configuration, known_model
from qplan.solvers.tuning.tables import Table
from qplan.solvers.tuning.tunefile import Tuning

if TYPE_CHECKING:
    from qplan.models.forecast import Forecast
    from qplan.models.surrogates import Surrogates

FORECAST = "forecast"

Floats = NDArray[np.float64]

_LIGHT_QPS = 0.01  # at which a forecast tells the saturation rate
_FORECAST = {"energy": "j_per_token", "throughput": "output_tokens_per_s"}


def expected(tuning: Tuning, configurations: Sequence[Configuration]) -> Floats | None:
    """Return the expected value of every objective, shape (N, M), NaN where nothing is expected.

    Raises
    ------
    InputError, StoreError
        The prior names no pack or store, or tells nothing of any configuration.
    """
    if tuning.prior is None:
        return None
    if tuning.prior == FORECAST:
        found = _from_forecasts(tuning, configurations)
    else:
        found = _from_table(tuning, tuning.prior, configurations)
    if np.isnan(found).all():
        raise InputError(f"prior: {tuning.prior} tells nothing of these configurations; leave the key out")
    return found


def _from_table(tuning: Tuning, source: str, configurations: Sequence[Configuration]) -> Floats:
    """Look expectations up.

    Settings, SLOs, workload, and how many items of a task were judged may be others there: only an expectation is
    wanted.
    """
    conditions = replace(tuning.conditions, slos=())
    table = Table.read(source, replace(tuning, conditions=conditions))
    if conditions.workload not in table.workloads and table.workloads:
        conditions = replace(conditions, workload=table.workloads[0])
        table = Table.read(source, replace(tuning, conditions=conditions))
    plain = [replace(one, parameters={}, target=replace(one.target, settings={})) for one in configurations]
    whole = [replace(one, task=one.task.partition("[:")[0]) for one in tuning.objectives]
    found = table.values(configurations, tuning.objectives)
    for others, objectives in ((plain, tuning.objectives), (configurations, whole), (plain, whole)):
        found = np.where(np.isnan(found), table.values(others, objectives), found)
    return found


def _from_forecasts(tuning: Tuning, configurations: Sequence[Configuration]) -> Floats:
    from qplan.models.surrogates import open_fitted

    surrogates = open_fitted(None)
    values = np.full((len(configurations), len(tuning.objectives)), np.nan)
    for row, one in zip(values, configurations, strict=True):
        found = _forecast(tuning, surrogates, one)
        if found is not None:
            row[:] = [_of(found, one, objective) for objective in tuning.objectives]
    return values


def _forecast(tuning: Tuning, surrogates: Surrogates, one: Configuration) -> Forecast | None:
    """Predict a configuration at the study's load; ``None`` where nothing is known of it."""
    from qplan.models.forecast import forecast

    model, asked = known_model(one.target.model), tuning.conditions
    workload = Workload.named(asked.workload) or (Workload.fixed(asked.workload) if "=" in asked.workload else None)
    engines = surrogates.engines(one.gpu)
    name, version = next((e for e in engines if e[0] == one.target.engine), engines[0] if engines else ("", ""))
    if model is None or workload is None or not name:
        return None
    try:
        deployment = Deployment(
            model, Quantization.parse(one.target.quantization), one.gpu, one.target.tp, name, version
        )
        answering = surrogates.answering(deployment)
        light = forecast(answering, deployment, workload, asked.qps or _LIGHT_QPS)
        if asked.share is None or light.saturation_qps is None:
            return light
        return forecast(answering, deployment, workload, min(asked.share, 0.99) * light.saturation_qps)
    except InputError:
        return None


def _of(found: Forecast, one: Configuration, objective: Objective) -> float:
    """Return what a forecast says of an objective, NaN where it says nothing."""
    if objective.name == "saturation":
        return float("nan") if found.saturation_qps is None else found.saturation_qps
    if objective.name == "memory":
        memory = found.deployment.memory()
        return memory.weights_bytes + memory.activation_bytes + memory.runtime_bytes
    told = {quantity.name: quantity.prediction for quantity in found.quantities}
    if objective.name == "cost":
        rate = told.get("output_tokens_per_s")
        return float("nan") if rate is None else one.gpus * one.gpu.price_per_hour / 3600 / (rate.value * 1e-6)
    statistic, _, metric = objective.name.partition(":")
    name = _FORECAST.get(objective.name, f"{metric}_{statistic}")
    prediction = told.get(name)
    return float("nan") if prediction is None else prediction.value
