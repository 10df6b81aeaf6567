"""Plans of a demand that grows: what each rate costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.demand import Demand
from qplan.core.errors import InfeasibleError, InputError
from qplan.core.units import parse_rate
from qplan.solvers.fleet.asking import ask_fleet
from qplan.solvers.fleet.planning import FleetAnswer, no_plan, solved

_RANGE = re.compile(r"\s*qps\s*=\s*(.+?)\s*\.\.\s*(.+?)\s*(?:/\s*(\d+)\s*)?", re.IGNORECASE)
_POINTS = 12


@dataclass(frozen=True, slots=True, eq=False)
class SweepPoint:
    """A plan at one rate: requests/s of the busiest period."""

    peak_qps: float
    answer: FleetAnswer


def parse_sweep(text: str, where: str = "--sweep") -> tuple[float, ...]:
    """Read ``qps=10..200`` or, with a number of points, ``qps=10..200/20``."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: cannot read '{text}'; expected qps=FROM..TO such as qps=10..200, or qps=10..200/20")
    low, high = parse_rate(match[1], where), parse_rate(match[2], where)
    points = int(match[3] or _POINTS)
    if not 0 < low < high or not 2 <= points <= 1000:
        raise InputError(f"{where}: '{text}'; expected rising rates above 0, and 2 to 1000 points")
    return tuple(float(rate) for rate in np.linspace(low, high, points))


def sweep(
    demand: Demand,
    peaks_qps: Sequence[float],
    *,
    solver: str = "highs",
    time_limit_s: float = 20.0,
    confidence: float | None = None,
) -> list[SweepPoint]:
    """Plan `demand` scaled to each of the peaks; the time limit is for each plan.

    Raises
    ------
    InputError
        When the profiles hold nothing of what is asked for.
    InfeasibleError
        When some class has no deployment at all, at any rate.
    """
    asked = ask_fleet(demand, confidence=confidence)
    points = []
    for peak in peaks_qps:
        here = asked.scaled(peak / demand.peak_qps)
        try:
            answer = solved(here, solver=solver, time_limit_s=time_limit_s)
        except InfeasibleError as error:
            answer = FleetAnswer(no_plan(here.demand, error, solver), here)
        points.append(SweepPoint(peak, answer))
    return points
