"""Planning again until the plan holds in simulation.

Where a plan falls short, the options at fault are given less capacity and the plan is made again. How much less is
found by simulating their replicas at lower loads of the same mix. What made one fall short may be in all: queues that
the prediction leaves out, or bursts of the requests, and the solver would try the options in turn. So the least factor
of a class on replicas of its own goes for the class on all options: at once where its requests come as a trace has them
and so in bursts, after :data:`APART` rounds in any case. After twice as many, the least factor of options that serve
the same classes goes for them all.

The loop ends: capacities never rise, each round lowers at least one option of the plan by :data:`STEP` or more, and
there are at most :data:`ROUNDS`. The plan that comes out is the cheapest *by the lowered capacities*; its bound is on
those. Each round simulates fresh arrivals, so that no plan passes because it was fitted to some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from qplan.core.errors import InfeasibleError
from qplan.models.steptimes import Bools, Floats
from qplan.solvers.fleet.replay import PlannedFleet, Replayed, replay
from qplan.solvers.fleet.verify import REQUESTS, STUDENT, Verification, judged, share_of

ROUNDS = 10
APART = 3
STEP = 0.01
_LEAST = 0.1
_HALVINGS = 6

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Tightened(Generic[Result]):
    """The last plan and what it reached.

    Attributes
    ----------
    first
        What the first plan reached, by capacities as predicted.
    factor : (K, D)
        What is left of each option's capacity for each class.
    rounds
        Plans made.
    """

    result: Result
    verification: Verification
    first: Verification
    factor: Floats
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Return what was verified, and how it came to that, as JSON-ready data."""
        return {
            **self.verification.to_json(),
            "rounds": self.rounds,
            "least_factor": float(self.factor.min()),
            "first": self.first.to_json(),
        }


def tighten(
    serves: Bools,
    solve: Callable[[Floats], Result],
    fleet_of: Callable[[Result], PlannedFleet],
    *,
    requests: int = REQUESTS,
    seed: int = 0,
) -> Tightened[Result]:
    """Plan, verify, and plan again with less capacity while the plan does not hold.

    Parameters
    ----------
    serves : (K, D)
        Which classes each option serves.
    solve
        Makes a plan, given a factor on the capacity of each option for each class, (K, D).
    fleet_of
        The plan as a fleet and its demand.

    Raises
    ------
    InfeasibleError
        From `solve`: with less capacity there is no plan.
    """
    factor = np.ones(serves.shape)
    result = solve(factor)
    tried: list[Verification] = []
    while True:
        fleet, arrivals = fleet_of(result), seed + len(tried)
        replayed = replay(fleet, requests=requests, seed=arrivals)
        tried.append(judged(fleet, replayed, arrivals))
        if tried[-1].holds or len(tried) == ROUNDS:
            return Tightened(result, tried[-1], tried[0], factor, len(tried))
        factor = factor.copy()
        for option, periods in at_fault(fleet, tried[-1], replayed).items():
            factor[:, option] *= most_load(fleet, option, periods, requests=requests, seed=arrivals)
        bursty = [recorded is not None for recorded in fleet.recorded]
        result = _with_less(solve, factor := shared(factor, serves, bursty, len(tried)))


def shared(factor: Floats, serves: Bools, bursty: Sequence[bool], rounds: int) -> Floats:
    """Return factors, (K, D), that go for more options than those they were found on; see the module."""
    factor = factor.copy()
    alone = serves.sum(axis=0) == 1
    for k, trace in enumerate(bursty):
        if trace or rounds >= APART:
            factor[k] = np.minimum(factor[k], factor[k, serves[k] & alone].min(initial=1.0))
    if rounds >= 2 * APART:
        _, alike = np.unique(serves, axis=1, return_inverse=True)
        for one in np.unique(alike):
            factor[:, alike == one] = factor[:, alike == one].min(axis=1, keepdims=True)
    return factor


def _with_less(solve: Callable[[Floats], Result], factor: Floats) -> Result:
    try:
        return solve(factor)
    except InfeasibleError as error:
        message = f"no fleet reaches its SLOs in simulation: with the capacities that do, {error}"
        raise InfeasibleError(message, constraint=error.constraint, nearest=error.nearest) from None


def at_fault(fleet: PlannedFleet, verification: Verification, replayed: list[Replayed]) -> dict[int, list[int]]:
    """Return the options whose own requests miss a target that their class misses; or the one nearest to that.

    With each come the periods in which they miss the targets by most.
    """
    missed: dict[int, dict[tuple[int, int], tuple[float, int]]] = {}  # by option and objective: how much, and when
    for one in verification.attainments:
        if one.certain:
            continue
        k = fleet.classes.index(one.class_name)
        n = fleet.slos[k].index(one.slo)
        for run in replayed:
            requests = run.requests[k, one.period]
            if requests.sum():
                by = one.target - share_of(run.met[k][n, one.period], requests)[0]
                worst = missed.setdefault(run.option, {})
                worst[k, n] = max(worst.get((k, n), (-np.inf, 0)), (by, one.period))
    most = {option: max(worst.values()) for option, worst in missed.items()}
    nearest = max(most, key=lambda option: most[option])
    return {
        option: sorted({period for by, period in worst.values() if by > 0} or {most[option][1]})
        for option, worst in missed.items()
        if most[option][0] > 0 or (option == nearest and most[nearest][0] <= 0)
    }


def most_load(fleet: PlannedFleet, option: int, periods: Sequence[int], *, requests: int, seed: int) -> float:
    """Return the factor on an option's load, at most 1 - :data:`STEP`, at which its requests reach their targets.

    All of them do in `periods`. Down to a tenth: what asks for less is lowered again in the next round.
    """
    low, high = _LEAST, 1 - STEP
    for halving in range(_HALVINGS):
        middle = (low + high) / 2 if halving else high
        if holds_at(fleet.scaled(middle, periods), option, requests=requests, seed=seed):
            low = middle
        else:
            high = middle
        if low >= high:
            break
    return low


def holds_at(fleet: PlannedFleet, option: int, *, requests: int, seed: int) -> bool:
    """Return whether every class reaches its targets, for certain, on the replicas of an option."""
    for run in replay(fleet, requests=requests, seed=seed, among=[option]):
        for k, met in enumerate(run.met):
            for n, slo in enumerate(fleet.slos[k]):
                assert slo.percentile is not None
                for h in np.flatnonzero(run.requests[k].sum(axis=1)):
                    share, variance = share_of(met[n, h], run.requests[k, h])
                    if share - STUDENT * np.sqrt(variance) < slo.percentile / 100:
                        return False
    return True
