"""Demand sent through a planned fleet, replica by replica.

A plan says which part of each bucket of requests goes to which deployment, drawn at random for each request. So what
one replica is sent does not depend on what the others do (:mod:`qplan.solvers.fleet.arrivals`), and of those that run
the same deployment, which all get the same in the mean, one stands for all: one that is up in every period in which
any is.

The periods follow one another in one run, each cut (or stretched) to a length that brings enough requests; what is not
done when one ends goes on in the next. Before the first period with demand there is a lead-in at that demand, whose
requests are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import Simulation, run
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats, Ints
from qplan.solvers.fleet.arrivals import Recorded, Sent, at_random

BATCHES = 20
"""Parts of a period whose shares give the interval (batch means)."""

LEAD_IN = 0.1
"""Length of the lead-in, as a share of the first period's."""

RARE = 0.2
"""Requests of any class that are wanted in a period, in those that a replica sees on average."""

STRETCH = 5.0

METRICS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PlannedFleet:
    """A fleet by period and the demand that it is for: K classes, B buckets, J kinds of requests, D options, H periods.

    Attributes
    ----------
    classes : (K,)
    slos : (K,)
        Objectives of each class, each with its percentile.
    bucket_class : (B,)
        Class of each bucket: what the routing tells apart.
    kind_bucket, input_tokens, output_tokens : (J,)
        Bucket and lengths of each kind of request.
    rate_qps : (J, H)
        Demand.
    options : (D,)
        For people.
    replicas : (D,)
        A replica of each option; only those with a count are looked at.
    counts : (D, H)
        Replicas that are up.
    share : (B, D, H)
        Part of each bucket that goes to each option.
    available : (D,)
        Part of the time that a replica is there: below 1 on spot GPUs, when the others carry its load.
    recorded : (K,)
        Requests of classes whose demand is a trace; ``None`` where they come at random times.
    """

    classes: tuple[str, ...]
    slos: tuple[tuple[Slo, ...], ...]
    bucket_class: Ints
    kind_bucket: Ints
    input_tokens: Ints
    output_tokens: Ints
    rate_qps: Floats
    options: tuple[str, ...]
    replicas: Sequence[Replica | None]
    counts: Ints
    share: Floats
    available: Floats
    recorded: tuple[Recorded | None, ...]

    def __post_init__(self) -> None:
        for slos in self.slos:
            for slo in slos:
                if slo.percentile is None:
                    raise InputError(f"SLO {slo}: expected its percentile, such as p90:{slo}")
                if slo.metric not in METRICS:
                    raise InputError(
                        f"SLO {slo}: the simulator keeps no single gaps between tokens; expected ttft, tpot or e2e"
                    )
        unserved = (self.rate_qps > 0) & (self.share.sum(axis=1)[self.kind_bucket] < 1 - 1e-6)
        if unserved.any():
            bucket = int(self.kind_bucket[np.argwhere(unserved)[0, 0]])
            raise InputError(f"the plan leaves requests of {self.classes[self.bucket_class[bucket]]} without a replica")

    @property
    def kind_class(self) -> Ints:
        """Class of each kind, (J,)."""
        return self.bucket_class[self.kind_bucket]

    def part(self, option: int) -> Floats:
        """Return the part of each bucket that one replica of an option gets, (B, H); 0 where none is up."""
        counts = self.counts[option]
        return np.where(counts > 0, self.share[:, option] / np.maximum(counts, 1) / self.available[option], 0.0)

    def load_qps(self, option: int) -> Floats:
        """Return the requests/s of each kind at one replica of an option, (J, H); 0 where none is up."""
        return np.asarray(self.rate_qps * self.part(option)[self.kind_bucket])

    def scaled(self, factor: float, periods: Sequence[int]) -> PlannedFleet:
        """Return the same fleet with `factor` times the requests in some periods, and none in the others."""
        factors = np.zeros(self.rate_qps.shape[1])
        factors[list(periods)] = factor
        return replace(self, rate_qps=self.rate_qps * factors)

    def sent(self, option: int, period: int, seconds: float, random: np.random.Generator) -> Sent:
        """Return the requests of one replica of an option in so many seconds of a period."""
        rates, part = self.load_qps(option)[:, period], self.part(option)[:, period]
        streams = []
        for k, whole in enumerate(self.recorded):
            mine = self.kind_class == k
            recorded = None if whole is None else whole.during(period, self.rate_qps.shape[1])
            if recorded and rates[mine].any():
                streams.append(recorded.sent(k, float(self.rate_qps[mine, period].sum()), part, seconds, random))
                rates = np.where(mine, 0.0, rates)
        streams.append(at_random(rates, self.kind_class, self.input_tokens, self.output_tokens, seconds, random))
        return Sent.merged(streams)


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What became of the requests of one replica of an option.

    Attributes
    ----------
    requests : (K, H, BATCHES)
        How many there were of each class, by period and part of it.
    met : per class, (slos of the class, H, BATCHES)
        How many met each objective; a refused request meets none.
    """

    option: int
    requests: Ints
    met: tuple[Ints, ...]


def replay(fleet: PlannedFleet, *, requests: int, seed: int, among: Sequence[int] | None = None) -> list[Replayed]:
    """Simulate one replica of each option that the fleet has.

    Parameters
    ----------
    requests
        How many a replica sees in a period, in the mean over the options.
    seed
        Of the arrivals. The requests of a replica depend on it, on the option and on the fleet alone.
    among
        Options to simulate; all that have replicas unless given.
    """
    seconds = period_s(fleet, requests)
    return [
        _replayed(fleet, option, seconds, np.random.default_rng([seed, option]))
        for option in np.flatnonzero(fleet.counts.any(axis=1)).tolist()
        if among is None or option in among
    ]


def period_s(fleet: PlannedFleet, requests: int) -> Floats:
    """Return the length of each period, (H,) seconds, in which replicas see `requests` each in the mean over options.

    It is longer, up to :data:`STRETCH` times, where a class would have fewer than :data:`RARE` of them all. A period
    without demand takes no time.
    """
    used = np.flatnonzero(fleet.counts.any(axis=1)).tolist()
    rates = np.stack([fleet.load_qps(option) for option in used])  # (options, J, H)
    loaded = (rates.sum(axis=1) > 0).sum(axis=0)
    classes = np.stack([rates[:, fleet.kind_class == k].sum(axis=(0, 1)) for k in range(len(fleet.classes))])
    total = classes.sum(axis=0)
    rarest = np.where(classes > 0, classes, np.inf).min(axis=0)
    shortest = requests * loaded / np.where(total > 0, total, 1.0)
    wanted = np.where(total > 0, RARE * requests / np.where(total > 0, rarest, 1.0), 0.0)
    return np.asarray(np.maximum(shortest, np.minimum(wanted, STRETCH * shortest)))


def _replayed(fleet: PlannedFleet, option: int, seconds: Floats, random: np.random.Generator) -> Replayed:
    first = int(np.argmax(seconds > 0))
    lead_in = LEAD_IN * seconds[first]
    parts = [fleet.sent(option, first, lead_in, random)]
    parts += [fleet.sent(option, period, length, random) for period, length in enumerate(seconds)]
    periods = np.repeat(np.arange(-1, len(seconds)), [len(part.times_s) for part in parts])
    begins = lead_in + np.concatenate([[0.0], np.cumsum(seconds)[:-1], [-lead_in]])  # the last: of the lead-in, -1
    within_s, classes, given, made = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("times_s", "classes", "input_tokens", "output_tokens")
    )
    requests = np.zeros((len(fleet.classes), len(seconds), BATCHES), np.int64)
    met = tuple(np.zeros((len(slos), len(seconds), BATCHES), np.int64) for slos in fleet.slos)
    if not len(within_s):
        return Replayed(option, requests, met)
    replica = fleet.replicas[option]
    assert replica is not None
    served = run(Simulation([replica]), Traffic(begins[periods] + within_s, given, made))
    latencies = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    done = ~np.isnan(served.e2e_s)
    counted = periods >= 0
    lengths = np.where(counted, seconds[periods], lead_in)
    cell = periods * BATCHES + np.minimum((within_s / lengths * BATCHES).astype(np.int64), BATCHES - 1)
    for k, slos in enumerate(fleet.slos):
        mine = counted & (classes == k)
        requests[k] = _count(cell[mine], requests[k].shape)
        for n, slo in enumerate(slos):
            good = mine & done & ~(latencies[slo.metric] > slo.threshold_s)  # NaN: a TPOT of one token
            met[k][n] = _count(cell[good], requests[k].shape)
    return Replayed(option, requests, met)


def _count(cells: Ints, shape: tuple[int, ...]) -> Ints:
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
