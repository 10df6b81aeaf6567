"""Policies tried on traffic: the margin and the replicas on standby with which they keep what others keep.

A policy is to keep its SLOs as least requests does on the same requests. Two things are found for that by simulation,
each the least that suffices: the margin on predicted latencies, and, by the mean load of an hour, how many replicas
stay awake. The load of the moment decides neither: a burst is there before a replica wakes, and what is asleep when it
begins is missed until it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.policy import Policy, PolicyStandby
from qplan.models.simulator.dispatch import Among, Dispatch, Routing
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import simulate
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats
from qplan.solvers.routing.compiled import ruled
from qplan.solvers.routing.fleet import FleetModel
from qplan.solvers.routing.lengths import Lengths
from qplan.solvers.routing.sleeping import schedule

MARGINS = tuple(round(1.2**n, 2) for n in range(10))
"""Factors on predicted latencies, of which the least is taken with which the policy keeps what is wanted."""

NEAR = 0.003
"""Where none keeps it, the least is taken that comes as near to it as any but for this share of the requests."""

LIKE_OTHERS = 0.997
FEWER = 0.5
"""Requests that miss an SLO are to be fewer than under least requests by this factor, or those beyond `LIKE_OTHERS`.

Bursts that were seen are few, and those to come are others: what just sufficed would not.
"""

_STEP = 1.4  # from one mean load at which standby is tried to the next


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Requests at a mean of one a second, which are tried at any load."""

    model: FleetModel
    traffic: Traffic

    @classmethod
    def of(cls, model: FleetModel, traffic: Traffic) -> Trial:
        """Scale `traffic`, whose buckets are the model's."""
        rate = len(traffic) / max(float(traffic.arrivals_s[-1]), 1e-9)
        return cls(model, replace(traffic, arrivals_s=traffic.arrivals_s * rate))

    def at(self, load_qps: float) -> Traffic:
        """Return the requests at a load."""
        return replace(self.traffic, arrivals_s=self.traffic.arrivals_s / load_qps)

    def kept(self, load_qps: float, dispatch: Routing, fleet: Sequence[Replica] | None = None) -> Floats:
        """Return the share of each class's requests within all its SLOs, then within each of them."""
        served = simulate(self.at(load_qps), self.model.replicas if fleet is None else fleet, dispatch)
        latency = {
            "ttft": served.ttft_s - served.deferred_s,
            "tpot": served.tpot_s,
            "e2e": served.e2e_s - served.deferred_s,
        }
        class_of = self.model.lengths.request_class[self.traffic.buckets]
        whole, single = [], []
        for k, one in enumerate(self.model.demand.classes):
            mine = class_of == k
            within = ~np.isnan(served.e2e_s)[mine]
            for slo in one.slos:
                met = ~np.isnan(served.e2e_s)[mine] & ~(latency[slo.metric][mine] > slo.threshold_s)
                single.append(float(met.mean()) if mine.any() else 1.0)
                within = within & met
            whole.append(float(within.mean()) if mine.any() else 1.0)
        return np.array([*whole, *single])

    def wanted(self, load_qps: float) -> tuple[Floats, bool]:
        """Return what is to be kept at a load, as :meth:`kept` does, and whether least requests keeps what is promised.

        Of each SLO it is the percentile that is promised, or what least requests keeps where that is less.
        """
        others = self.kept(load_qps, Among(Dispatch.LEAST_OUTSTANDING, self.model.able))
        classes = self.model.demand.classes
        promised = np.array([(slo.percentile or 0) / 100 for one in classes for slo in one.slos])
        whole, single = others[: len(classes)], others[len(classes) :]
        least = np.minimum(1 - FEWER * (1 - whole), LIKE_OTHERS)
        return np.concatenate([least, np.minimum(single, promised)]), bool((single >= promised).all())


def as_seen(lengths: Lengths, traffic: Traffic, request_class: int, seed: int = 0) -> Traffic:
    """Return requests of one class as they came, and between them Poisson arrivals of the others at their share."""
    own = replace(traffic, buckets=lengths.bucket_of(np.full(len(traffic), request_class), traffic.input_tokens))
    share = lengths.class_share[request_class]
    if share == 1:
        return own
    duration_s = float(traffic.arrivals_s[-1])
    count = round(len(traffic) / share)
    drawn = lengths.draw(count / max(duration_s, 1e-9), count, seed)
    others = lengths.request_class[drawn.buckets] != request_class
    columns = [
        np.concatenate([getattr(own, name), getattr(drawn, name)[others]])
        for name in ("arrivals_s", "input_tokens", "output_tokens", "buckets")
    ]
    order = np.argsort(columns[0], kind="stable")
    return Traffic(*(column[order] for column in columns))


def with_margin(seen: Trial, policy: Policy) -> Policy:
    """Return the policy with the least margin that suffices at the loads of all its levels.

    Loads at which least requests does not keep what is promised ask for nothing: there is nothing to be kept.
    """
    margin = MARGINS[0]
    for level in policy.levels[:-1]:
        wanted, promised = seen.wanted(level.load_qps)
        if promised:
            margin = _least_margin(seen, policy, level.load_qps, wanted, margin)
    return replace(policy, margin=margin)


def _least_margin(seen: Trial, policy: Policy, load_qps: float, wanted: Floats, start: float) -> float:
    tried, short = [margin for margin in MARGINS if margin >= start], []
    for margin in tried:
        short.append(min(float((seen.kept(load_qps, ruled(replace(policy, margin=margin))) - wanted).min()), 0.0))
        if short[-1] == 0:
            break
    return next(margin for margin, one in zip(tried, short, strict=False) if one >= max(short) - NEAR)


def with_standby(seen: Trial, policy: Policy) -> Policy:
    """Return the policy with the replicas that stand by: of each number of them the largest mean load it suffices for.

    Replicas are added in the order in which levels wake them; what suffices at a load suffices below.
    """
    awake = np.maximum.accumulate(np.array([level.awake for level in policy.levels]))
    whole = tuple(group.count for group in policy.groups)
    chain = sorted({tuple(int(n) for n in row) for row in awake} - {whole}, key=sum)
    load = policy.levels[-1].load_qps
    found = [PolicyStandby(load, whole)]
    while chain and load > policy.levels[0].load_qps / 2:
        load /= _STEP
        wanted, _ = seen.wanted(load)
        enough = None
        while chain and _suffices(seen, policy, chain[-1], load, wanted):
            enough = chain.pop()
        if enough is not None:
            found.insert(0, PolicyStandby(load, enough))
    return replace(policy, standby=tuple(found))


def _suffices(seen: Trial, policy: Policy, awake: tuple[int, ...], load_qps: float, wanted: Floats) -> bool:
    # Nothing is held after the start, when all are awake: what was seen may be shorter than that.
    tried = replace(policy, standby=(PolicyStandby(np.inf, awake),), hold_s=0.0)
    fleet = schedule(tried, seen.at(load_qps)).of(seen.model.replicas, tried)
    return bool((seen.kept(load_qps, ruled(tried), fleet) >= wanted).all())
