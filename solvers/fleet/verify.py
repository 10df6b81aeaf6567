"""What a plan really reaches: the demand replayed through the simulator, and attainment with its interval.

Attainment of a class in a period is the mean of its attainment at the options, each weighted by the class's requests
that it is sent: a stratified estimate, of as many strata as there are options. Within a replica successive
requests are not independent, for they wait for one another; so its variance comes from the shares of :data:`BATCHES`
successive parts of the period (batch means of a ratio: Law, *Simulation Modeling and Analysis*, section 9.5.3), and is
no less than that of independent requests.

The simulator runs on the same step times as the plan. What is verified is the plan's arithmetic of queues, mixes and
whole replicas, not the step times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qplan.core.slo import Slo
from qplan.models.steptimes import Floats
from qplan.solvers.fleet.replay import BATCHES, PlannedFleet, Replayed, replay

REQUESTS = 20_000
"""Requests that a simulated replica sees in a period, in the mean."""

COVERAGE = 0.95
"""Of the intervals."""

STUDENT = 2.09  # 97.5 % quantile at BATCHES - 1 degrees of freedom


@dataclass(frozen=True, slots=True)
class Attainment:
    """Share of the requests of a class that met an objective in one period.

    Attributes
    ----------
    share, lower, upper
        The estimate and its interval of 95 %.
    requests
        How many were simulated.
    """

    class_name: str
    slo: Slo
    period: int
    share: float
    lower: float
    upper: float
    requests: int

    @property
    def target(self) -> float:
        """The share that the objective asks for."""
        assert self.slo.percentile is not None
        return self.slo.percentile / 100

    @property
    def reached(self) -> bool:
        """Whether the estimate is at least the target."""
        return self.share >= self.target

    @property
    def certain(self) -> bool:
        """Whether the whole interval is."""
        return self.lower >= self.target


@dataclass(frozen=True, slots=True)
class Verification:
    """What a plan reached.

    Attributes
    ----------
    attainments
        Of every class, objective and period with demand.
    requests
        How many were simulated.
    recorded
        Classes whose requests came as a trace has them; the others' came at random times.
    """

    attainments: tuple[Attainment, ...]
    requests: int
    seed: int
    recorded: tuple[str, ...]

    @property
    def reached(self) -> bool:
        """Whether every estimate is at least its target."""
        return all(one.reached for one in self.attainments)

    @property
    def holds(self) -> bool:
        """Whether every interval lies above its target: what a plan must show before it is called verified."""
        return all(one.certain for one in self.attainments)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "holds": self.holds,
            "reached": self.reached,
            "requests": self.requests,
            "seed": self.seed,
            "recorded": list(self.recorded),
            "coverage": COVERAGE,
            "attainments": [
                {
                    "class": one.class_name,
                    "slo": str(one.slo),
                    "period": one.period,
                    "target": one.target,
                    "share": one.share,
                    "lower": one.lower,
                    "upper": one.upper,
                    "requests": one.requests,
                }
                for one in self.attainments
            ],
        }


def verify(fleet: PlannedFleet, *, requests: int = REQUESTS, seed: int = 0) -> Verification:
    """Replay the demand through the fleet.

    Raises
    ------
    InputError
        numba is missing.
    """
    return judged(fleet, replay(fleet, requests=requests, seed=seed), seed)


def judged(fleet: PlannedFleet, replayed: Sequence[Replayed], seed: int) -> Verification:
    """Say what replayed requests mean for the plan."""
    attainments = []
    periods = fleet.counts.shape[1]
    for k, (name, slos) in enumerate(zip(fleet.classes, fleet.slos, strict=True)):
        mine = fleet.kind_class == k
        sent = np.stack([fleet.counts[one.option] * fleet.load_qps(one.option)[mine].sum(axis=0) for one in replayed])
        for n, slo in enumerate(slos):
            for h in range(periods):
                if not sent[:, h].sum() > 0:
                    continue
                weights = sent[:, h] / sent[:, h].sum()
                seen = [one for one, weight in zip(replayed, weights, strict=True) if weight > 0]
                strata = [share_of(one.met[k][n, h], one.requests[k, h]) for one in seen]
                shares, variances = np.array(strata).T
                weights = weights[weights > 0]
                share = float(weights @ shares)
                spread = STUDENT * float(np.sqrt(weights**2 @ variances))
                count = int(sum(one.requests[k, h].sum() for one in seen))
                attainments.append(
                    Attainment(name, slo, h, share, max(0.0, share - spread), min(1.0, share + spread), count)
                )
    total = int(sum(one.requests.sum() for one in replayed))
    traces = tuple(name for name, trace in zip(fleet.classes, fleet.recorded, strict=True) if trace is not None)
    return Verification(tuple(attainments), total, seed, traces)


def share_of(met: Floats, requests: Floats) -> tuple[float, float]:
    """Return the share of requests that met an objective, and the variance of that; both arguments are (BATCHES,)."""
    total = requests.sum()
    if total == 0:
        return 1.0, 0.25  # nothing was seen: nothing is known
    share = met.sum() / total
    residuals = met - share * requests
    batched = BATCHES / (BATCHES - 1) * (residuals**2).sum() / total**2
    near = (met.sum() + 2) / (total + 4)  # Agresti and Coull: not 0 where all met it
    return float(share), float(max(batched, near * (1 - near) / total))
