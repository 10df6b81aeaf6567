"""Demand sent through a planned fleet, replica by replica.

A plan says which part of each bucket of requests goes to which deployment. Drawn at random for each request, as
qplan's router and the plan's arithmetic take it, the requests of one replica are a Poisson stream of their own,
independent of all others' (Kingman, *Poisson Processes*, 1993, section 5.1). So replicas can be simulated apart, and of
those that run the same deployment in the same periods one stands for all.

The periods follow one another in one run, each cut (or stretched) to a length that brings enough requests; a replica
that starts begins empty, one that stops still serves what it has. Before the first period there is a lead-in at that
period's demand, whose requests are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import Simulation, run
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Bools, Floats, Ints

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

    def load_qps(self, option: int) -> Floats:
        """Return the requests/s of each kind at one replica of an option, (J, H); 0 where none is up."""
        counts = self.counts[option]
        part = self.share[self.kind_bucket, option] / np.maximum(counts, 1) / self.available[option]
        return np.where(counts > 0, self.rate_qps * part, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """Replicas of one option that are up in the same periods, of which one is simulated.

    Attributes
    ----------
    up : (H,)
    """

    option: int
    count: int
    up: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What became of the requests of one replica.

    Attributes
    ----------
    requests : (K, H, BATCHES)
        How many there were of each class, by period and part of it.
    met : per class, (slos of the class, H, BATCHES)
        How many met each objective; a refused request meets none.
    """

    alike: Alike
    requests: Ints
    met: tuple[Ints, ...]


def alike(counts: Ints) -> list[Alike]:
    """Group the replicas of each option, `counts` (D, H), by the periods in which they are up.

    The replica that started last stops first, so that as few as can be start and stop.
    """
    groups = []
    for option, row in enumerate(counts):
        below = 0
        for level in np.unique(row[row > 0]):
            groups.append(Alike(option, int(level) - below, row >= level))
            below = int(level)
    return groups


def replay(
    fleet: PlannedFleet, *, requests: int, seed: int, among: Sequence[int] | None = None, load: float = 1.0
) -> list[Replayed]:
    """Simulate one replica of each kind that the fleet has.

    Parameters
    ----------
    requests
        How many a replica sees in a period, in the mean over the replicas that are simulated.
    seed
        Of the arrivals. The requests of a replica depend on it and on the replica alone.
    among
        Options to simulate; all that have replicas unless given.
    load
        Factor on the demand.
    """
    groups = alike(fleet.counts)
    seconds = period_s(fleet, groups, requests) / load
    return [
        _replayed(fleet, one, seconds, load, np.random.default_rng([seed, n]))
        for n, one in enumerate(groups)
        if among is None or one.option in among
    ]


def period_s(fleet: PlannedFleet, groups: Sequence[Alike], requests: int) -> Floats:
    """Return the length of each period, (H,) seconds, in which the replicas of `groups` see `requests` each on average.

    It is longer, up to :data:`STRETCH` times, where a class would have fewer than :data:`RARE` of them all. A period
    without demand takes no time.
    """
    rates = np.stack([fleet.load_qps(one.option) * one.up for one in groups])  # (groups, J, H)
    loaded = (rates.sum(axis=1) > 0).sum(axis=0)
    classes = np.stack([rates[:, fleet.kind_class == k].sum(axis=(0, 1)) for k in range(len(fleet.classes))])
    total = classes.sum(axis=0)
    rarest = np.where(classes > 0, classes, np.inf).min(axis=0)
    shortest = requests * loaded / np.where(total > 0, total, 1.0)
    wanted = np.where(total > 0, RARE * requests / np.where(total > 0, rarest, 1.0), 0.0)
    return np.asarray(np.maximum(shortest, np.minimum(wanted, STRETCH * shortest)))


def _replayed(fleet: PlannedFleet, one: Alike, seconds: Floats, load: float, random: np.random.Generator) -> Replayed:
    rates = fleet.load_qps(one.option) * one.up * load
    arrivals, kinds, periods = _drawn(rates, seconds, random)
    classes = len(fleet.classes)
    requests = np.zeros((classes, len(seconds), BATCHES), np.int64)
    met = tuple(np.zeros((len(slos), len(seconds), BATCHES), np.int64) for slos in fleet.slos)
    if not len(arrivals):
        return Replayed(one, requests, met)
    replica = fleet.replicas[one.option]
    assert replica is not None
    served = run(Simulation([replica]), Traffic(arrivals, fleet.input_tokens[kinds], fleet.output_tokens[kinds]))
    latencies = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    done = ~np.isnan(served.e2e_s)
    starts = LEAD_IN * seconds[0] + np.concatenate([[0.0], np.cumsum(seconds)])
    counted = periods >= 0
    part = (arrivals - starts[periods]) / np.maximum(seconds[periods], 1e-300) * BATCHES
    cell = periods * BATCHES + np.clip(part.astype(np.int64), 0, BATCHES - 1)
    class_of = fleet.kind_class[kinds]
    for k, slos in enumerate(fleet.slos):
        mine = counted & (class_of == k)
        requests[k] = _count(cell[mine], requests[k].shape)
        for n, slo in enumerate(slos):
            good = mine & done & ~(latencies[slo.metric] > slo.threshold_s)  # NaN: a TPOT of one token
            met[k][n] = _count(cell[good], requests[k].shape)
    return Replayed(one, requests, met)


def _count(cells: Ints, shape: tuple[int, ...]) -> Ints:
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def _drawn(rates: Floats, seconds: Floats, random: np.random.Generator) -> tuple[Floats, Ints, Ints]:
    """Draw Poisson arrivals at `rates` (J, H) in periods of `seconds` (H,); the lead-in is period -1."""
    pieces = list(_pieces(rates, seconds, random))
    arrivals, kinds, periods = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return arrivals, kinds, periods


def _pieces(rates: Floats, seconds: Floats, random: np.random.Generator) -> Iterator[tuple[Floats, Ints, Ints]]:
    start = 0.0
    for period, length in ((-1, LEAD_IN * seconds[0]), *enumerate(seconds)):
        rate = rates[:, max(period, 0)]
        total = float(rate.sum())
        count = int(random.poisson(total * length))
        times = start + length * np.sort(random.random(count))
        kinds = random.choice(len(rate), count, p=rate / total) if count else np.zeros(0, np.int64)
        yield times, kinds, np.full(count, period)
        start += length
