"""What the replicas of a fleet are predicted to do: latencies by class, and watts, of each group in each period."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qplan.core.fleetplan import ClassLatency
from qplan.core.plan import LatencyPrediction
from qplan.core.slo import METRICS
from qplan.core.workload import Workload
from qplan.models.power.energy import energy
from qplan.models.serving import LoadedReplicas
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats, Ints
from qplan.solvers.capacity.ask import DEFAULT_PERCENTILE
from qplan.solvers.capacity.planner import error_band
from qplan.solvers.fleet.asking import Asked
from qplan.solvers.fleet.problem import FleetResult

_DIGITS = 6  # of a mix's shares: mixes that agree in them are the same


@dataclass(frozen=True, slots=True)
class Predicted:
    """One group in one period: requests/s and watts of a replica (``None`` where unknown), and latency by class."""

    load_qps: float
    power_w: float | None
    latency: Mapping[str, ClassLatency]


def predict(asked: Asked, result: FleetResult) -> dict[tuple[int, int], Predicted]:
    """Predict every group of the fleet; keys are its option and period.

    Periods in which an option gets the same mix at different rates are predicted together.
    """
    alike: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    rates: dict[tuple[int, int], Floats] = {}
    for d, h in np.argwhere(result.counts > 0).tolist():
        rate = asked.problem.rate_qps[:, h] * result.share[:, d, h] / result.counts[d, h]
        rates[d, h] = rate
        mix = np.round(rate / max(rate.sum(), 1e-300), _DIGITS)
        alike[d, mix.tobytes()].append(h)
    found: dict[tuple[int, int], Predicted] = {}
    for (d, _), periods in alike.items():
        each = _idle(asked, d, periods) if not rates[d, periods[0]].any() else _loaded(asked, d, periods, rates)
        found.update({(d, h): one for h, one in zip(periods, each, strict=True)})
    return found


def _idle(asked: Asked, d: int, periods: list[int]) -> list[Predicted]:
    watts = asked.idle_w(d)
    return [Predicted(0.0, watts, {}) for _ in periods]


def _loaded(asked: Asked, d: int, periods: list[int], rates: Mapping[tuple[int, int], Floats]) -> list[Predicted]:
    """Predict a replica of option `d` in `periods` that have the same mix."""
    first = rates[d, periods[0]]
    mix = _mix(asked, np.flatnonzero(first), first)
    total = np.array([rates[d, h].sum() for h in periods])
    deployments = [asked.deployments[d]] * len(periods)
    steps = asked.steps.take(np.full(len(periods), d))
    model = SharingModel.of(deployments, steps)
    burned = energy(deployments, steps, mix, total, model.at(mix, total))
    latency: list[dict[str, ClassLatency]] = [{} for _ in periods]
    for k, one in enumerate(asked.demand.classes):
        mine = asked.buckets.of_class(k)
        mine = mine[first[mine] > 0]
        if len(mine):
            loaded = model.at(mix, total, _mix(asked, mine, first))
            for row, seen in zip(latency, _latencies(asked, k, loaded), strict=True):
                row[one.name] = seen
    watts = [None if reason else float(w) for reason, w in zip(burned.reasons, burned.power_w, strict=True)]
    return [Predicted(float(r), w, row) for r, w, row in zip(total, watts, latency, strict=True)]


def _mix(asked: Asked, buckets: Ints, rates: Floats) -> Workload:
    """Return the requests of some buckets at their rates as one workload."""
    triples = [
        (one.input_tokens, one.output_tokens, one.weight * rates[b])
        for b in buckets
        for one in asked.buckets.mixes[b].buckets
    ]
    return Workload.of("the replica's mix", "general", triples, "the plan")


def _latencies(asked: Asked, k: int, loaded: LoadedReplicas) -> list[ClassLatency]:
    """Predict the percentiles that class `k` has objectives on, and TTFT and TPOT in any case, for each replica."""
    slos = asked.demand.classes[k].slos
    wanted = {(slo.metric, slo.percentile or DEFAULT_PERCENTILE): slo.threshold_s for slo in slos}
    for metric in ("ttft", "tpot"):
        if all(metric != asked_for for asked_for, _ in wanted):
            wanted[metric, DEFAULT_PERCENTILE] = float("nan")
    order = sorted(wanted, key=lambda key: (METRICS.index(key[0]), key[1]))
    table = np.array([loaded.percentile(metric, percentile) for metric, percentile in order])
    bands = [error_band(metric, asked.known_error) for metric, _ in order]
    attained = np.min([loaded.attainment(slo.metric, slo.threshold_s) for slo in slos], axis=0) if slos else None
    return [
        ClassLatency(
            1.0 if attained is None else float(attained[n]),
            tuple(
                LatencyPrediction(
                    *key, value, value * low, value * high, None if np.isnan(wanted[key]) else wanted[key]
                )
                for key, value, (low, high) in zip(order, column.tolist(), bands, strict=True)
            ),
        )
        for n, column in enumerate(table.T)
    ]
