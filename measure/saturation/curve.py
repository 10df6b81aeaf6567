"""Where the share of misses crosses the share allowed, from all probes together.

Around the saturation rate ``r*`` the log-odds of a miss rise about linearly in the log of the rate, and more
steeply the nearer capacity is::

    logit miss(r) = logit allowed + steepness * ln(r / r*)      steepness below r*, one or three times it above

Every pair of ``r*`` and steepness on a grid is weighed by the probes' likelihood; summing over the steepness leaves the
distribution of ``r*``, whose quantiles are the estimate and its interval. Three things keep it honest:

- A probe counts as ``requests / decorrelation`` requests, as misses come in bursts.
- The decorrelation is itself an estimate, so the likelihood has the tails of Student's t at its degrees of freedom.
- The curve is no exact logistic. A probe's log-odds may be off by a share of their distance to ``r*``, so probes far
  away say on which side ``r*`` lies and little more.

A probe with a growing queue only says that ``r*`` is below its rate. As a search looks at the interval again and again
and stops once it is narrow, the error allowed is shared between looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.measure.load.requests import Floats
from qplan.measure.saturation.probe import WARM_UP, ProbeResult
from qplan.measure.saturation.sequential import decorrelation

# Misses rise at least in proportion to the rate (light traffic), mostly as its 5th to 20th power, and like a cliff
# where the SLO is only reached next to capacity.
_BELOW, _RATIO = (axis.reshape(-1, 1) for axis in np.meshgrid(np.geomspace(1.0, 160.0, 12), [1.0, 3.0]))
_STEEPNESS_WEIGHT = -0.5 * (np.log(_BELOW / 9.0) / 2.5) ** 2
_BEND = 0.4
_NEAR = 1.2
_OVERLOAD_ERROR = 0.01
_POINTS = 100
_LOOKS = 3.0


@dataclass(frozen=True, slots=True)
class Crossing:
    """The saturation rate as known so far: best estimate and interval, requests/s."""

    low_qps: float
    qps: float
    high_qps: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, relative to the estimate, on a log scale."""
        return math.log(self.high_qps / self.low_qps) / 2


def locate(
    probes: Sequence[ProbeResult], allowed: Sequence[float], low_qps: float, high_qps: float, confidence: float
) -> Crossing:
    """Return where the first of the criteria stops to hold.

    Parameters
    ----------
    probes
        Valid probes, at least one, the latest last.
    allowed
        Share of requests that may miss each criterion.
    low_qps, high_qps
        Range that is thought possible; within it every rate is as likely as any other, on a log scale.
    confidence
        That the interval holds the truth.
    """
    grid = np.linspace(math.log(low_qps), math.log(high_qps), _POINTS)
    cumulative = _first_crossing(probes, allowed, grid, None)
    centre_qps = math.exp(np.interp(0.5, cumulative, grid))
    # A second grid where the mass is: the first is too coarse for a sharp answer.
    inside = np.flatnonzero((cumulative > 1e-5) & (cumulative < 1 - 1e-5))
    first, last = (inside[0], inside[-1]) if len(inside) else (cumulative.searchsorted(0.5),) * 2
    grid = np.linspace(grid[max(first - 2, 0)], grid[min(last + 2, len(grid) - 1)], _POINTS)
    cumulative = _first_crossing(probes, allowed, grid, centre_qps)
    tail = (1 - confidence) / 2 / _LOOKS
    low, mid, high = np.exp(np.interp([tail, 0.5, 1 - tail], cumulative, grid))
    return Crossing(float(low), float(mid), float(high))


def _first_crossing(
    probes: Sequence[ProbeResult], allowed: Sequence[float], grid: Floats, centre_qps: float | None
) -> Floats:
    """Return the probability that the lowest of the criteria's crossings is below each rate, shape of `grid`."""
    survival = np.ones_like(grid)
    for criterion, share in enumerate(allowed):
        survival *= 1 - np.cumsum(_density(probes, criterion, share, grid, centre_qps))
    return 1 - survival


def _density(
    probes: Sequence[ProbeResult], criterion: int, allowed: float, grid: Floats, centre_qps: float | None
) -> Floats:
    """Return the probability of each rate of `grid`, given in logs, to be the criterion's crossing; they sum to 1."""
    apart, freedom = correlation(probes, criterion, allowed, centre_qps)
    deviance = np.zeros((len(_BELOW), len(grid)))
    weight = np.broadcast_to(_STEEPNESS_WEIGHT, deviance.shape).copy()
    for probe in probes:
        distance = math.log(probe.rate_qps) - grid
        if probe.growing:
            weight += np.where(distance > 0, 0.0, math.log(_OVERLOAD_ERROR))
            continue
        seen = counted(probe, criterion, apart)
        if not len(seen):
            continue
        effective, share = len(seen) / max(apart, probe.decorrelation[criterion]), float(seen.mean())
        away = _BELOW * np.where(distance > 0, _RATIO, 1.0) * distance
        log_odds = np.clip(math.log(allowed / (1 - allowed)) + away, -300.0, 300.0)
        odds = np.exp(log_odds)
        divergence = np.log1p(odds) - share * log_odds - _entropy(share)
        bend = 1 + effective * odds / (1 + odds) ** 2 * (_BEND * away) ** 2
        deviance += effective * divergence / bend
        weight -= 0.5 * np.log(bend)
    weight -= (freedom + 1) / 2 * np.log1p(2 * (deviance - deviance.min()) / freedom)
    density: Floats = np.exp(weight - weight.max()).sum(axis=0)
    density /= density.sum()
    return density


def correlation(
    probes: Sequence[ProbeResult], criterion: int, allowed: float, centre_qps: float | None = None
) -> tuple[float, int]:
    """Return how many requests tell as much as one, and the degrees of freedom of that.

    Bursts are longer the closer the rate is to capacity, so only probes near `centre_qps` are asked, if there are any.
    """
    told = [probe for probe in probes if probe.requests]
    near = [probe for probe in told if centre_qps and is_near(probe.rate_qps, centre_qps)] or told
    if not near:
        return 1.0, 1
    requests = sum(probe.requests for probe in near)
    apart = sum(probe.decorrelation[criterion] * probe.requests for probe in near) / requests
    series = [counted(probe, criterion, apart) for probe in near if not probe.growing]
    misses = sum(float(values.sum()) for values in series) + allowed
    share = misses / (sum(len(values) for values in series) + 1)
    of_misses, freedom = decorrelation(series, share * (1 - share))
    return max(apart, of_misses), freedom


def is_near(rate_qps: float, centre_qps: float) -> bool:
    """Whether the queue's memory is much the same at both rates."""
    return 1 / _NEAR < rate_qps / centre_qps < _NEAR


def counted(probe: ProbeResult, criterion: int, apart: float) -> Floats:
    """Return the misses after the warm-up: a share of the probe, longer where the queue's memory is."""
    warm_up = max(WARM_UP * probe.requests, 1.5 * max(apart, probe.decorrelation[criterion]))
    return probe.missed(criterion)[int(min(warm_up, probe.requests / 2)) :]


def _entropy(share: float) -> float:
    return -sum(part * math.log(part) for part in (share, 1 - share) if part > 0)
