"""Planning again until the plan holds in simulation.

Where a plan falls short, the options at fault are given less capacity and the plan is made again. How much less is
found by simulating their replicas at lower loads of the same mix. After :data:`APART` rounds the least factor found so
far goes for every option: what made one fall short, such as queues that the prediction leaves out, may be in all, and
the solver would try them in turn.

The loop ends: capacities never rise, each round lowers at least one option of the plan by :data:`STEP` or more, and
there are at most :data:`ROUNDS`. The plan that comes out is the cheapest *by the lowered capacities*; its bound is on
those. Each round simulates fresh arrivals, so that no plan passes because it was fitted to some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from qplan.core.errors import InfeasibleError
from qplan.models.steptimes import Floats
from qplan.solvers.fleet.replay import PlannedFleet, Replayed, replay
from qplan.solvers.fleet.verify import REQUESTS, STUDENT, Verification, judged, share_of

ROUNDS = 10
APART = 3
STEP = 0.01
_LEAST = 0.5
_HALVINGS = 5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Tightened(Generic[Result]):
    """The last plan and what it reached.

    Attributes
    ----------
    first
        What the first plan reached, by capacities as predicted.
    factor : (D,)
        What is left of each option's capacity.
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
    options: int,
    solve: Callable[[Floats], Result],
    fleet_of: Callable[[Result], PlannedFleet],
    *,
    requests: int = REQUESTS,
    seed: int = 0,
) -> Tightened[Result]:
    """Plan, verify, and plan again with less capacity while the plan does not hold.

    Parameters
    ----------
    options
        D.
    solve
        Makes a plan, given a factor on the capacity of each option, (D,).
    fleet_of
        The plan as a fleet and its demand.

    Raises
    ------
    InfeasibleError
        From `solve`: with less capacity there is no plan.
    """
    factor = np.ones(options)
    result = solve(factor)
    tried: list[Verification] = []
    while True:
        fleet, arrivals = fleet_of(result), seed + len(tried)
        replayed = replay(fleet, requests=requests, seed=arrivals)
        tried.append(judged(fleet, replayed, arrivals))
        if tried[-1].holds or len(tried) == ROUNDS:
            return Tightened(result, tried[-1], tried[0], factor, len(tried))
        factor = factor.copy()
        for option in at_fault(fleet, tried[-1], replayed):
            factor[option] *= most_load(fleet, option, requests=requests, seed=arrivals)
        if len(tried) >= APART:
            factor = np.minimum(factor, factor.min())
        result = _with_less(solve, factor)


def _with_less(solve: Callable[[Floats], Result], factor: Floats) -> Result:
    try:
        return solve(factor)
    except InfeasibleError as error:
        message = f"no fleet reaches its SLOs in simulation: with the capacities that do, {error}"
        raise InfeasibleError(message, constraint=error.constraint, nearest=error.nearest) from None


def at_fault(fleet: PlannedFleet, verification: Verification, replayed: list[Replayed]) -> list[int]:
    """Return the options whose own requests miss a target that their class misses; or the one nearest to that."""
    missed: dict[int, float] = {}
    for one in verification.attainments:
        if one.certain:
            continue
        k = fleet.classes.index(one.class_name)
        n = fleet.slos[k].index(one.slo)
        for run in replayed:
            requests = run.requests[k, one.period]
            if requests.sum():
                by = one.target - share_of(run.met[k][n, one.period], requests)[0]
                missed[run.alike.option] = max(missed.get(run.alike.option, -np.inf), by)
    at_least_one = max(missed, key=lambda option: missed[option])
    return [option for option, by in missed.items() if by > 0] or [at_least_one]


def most_load(fleet: PlannedFleet, option: int, *, requests: int, seed: int) -> float:
    """Return the factor on an option's load, at most 1 - :data:`STEP`, at which all its requests reach their targets.

    Down to a half: what asks for less is lowered again in the next round.
    """
    low, high = _LEAST, 1 - STEP
    for halving in range(_HALVINGS):
        middle = (low + high) / 2 if halving else high
        if holds_at(fleet, option, middle, requests=requests, seed=seed):
            low = middle
        else:
            high = middle
        if low >= high:
            break
    return low


def holds_at(fleet: PlannedFleet, option: int, load: float, *, requests: int, seed: int) -> bool:
    """Return whether every class reaches its targets, for certain, on an option at a factor on its load."""
    for run in replay(fleet, requests=requests, seed=seed, among=[option], load=load):
        for k, met in enumerate(run.met):
            for n, slo in enumerate(fleet.slos[k]):
                assert slo.percentile is not None
                for h in np.flatnonzero(run.requests[k].sum(axis=1)):
                    share, variance = share_of(met[n, h], run.requests[k, h])
                    if share - STUDENT * np.sqrt(variance) < slo.percentile / 100:
                        return False
    return True
