"""Planning against what latencies may be instead of what they are predicted to be.

A pack's card says how far real latencies were from its predictions: the median and the ends of the central range of
measured over predicted; without a median the middle of the range stands for it. Between them the logarithm of the
ratio is taken as normal on its upper half, so a bound that holds with probability ``p`` is ``median
(upper / median)^(z(p) / z((1 + coverage) / 2))`` times the prediction, and a plan that keeps ``SLO / ratio`` by
prediction keeps the SLO with that confidence. Quality likewise, linearly between the estimate and the lower end of its
range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.models.quality import Quality

_JUDGED = 0.9  # coverage that a range of quality is given where it states none


def upper_ratio(metric: str, known_error: Mapping[str, Any] | None, confidence: float) -> float:
    """Return the factor on a prediction of `metric` that real latencies stay below with `confidence`; at least 1.

    Raises
    ------
    InputError
        When the error of the profiles is not known.
    """
    if known_error is None:
        raise InputError("--confidence: the error of these profiles against real serving is not known")
    ratios = known_error["measured_over_predicted"]
    names = {"ttft": ("ttft",), "e2e": ("ttft", "tpot")}.get(metric, ("tpot",))
    upper = (1 + known_error["coverage"]) / 2
    scale = NormalDist().inv_cdf(confidence) / NormalDist().inv_cdf(upper)
    bounds: list[float] = []
    for name in names:
        lower, upper_end = ratios[name]["lower"], ratios[name]["upper"]
        median = ratios[name].get("median", (lower * upper_end) ** 0.5)
        bounds.append(median * (upper_end / median) ** scale)
    return max(1.0, *bounds)


def tightened(slos: Sequence[Slo], known_error: Mapping[str, Any] | None, confidence: float) -> tuple[Slo, ...]:
    """Return the SLOs that predictions must keep so that the truth keeps `slos` with `confidence`."""
    return tuple(
        replace(slo, threshold_s=slo.threshold_s / upper_ratio(slo.metric, known_error, confidence)) for slo in slos
    )


def surely(grade: Quality, confidence: float) -> float:
    """Return what the quality is at least with `confidence`."""
    upper = (1 + (grade.coverage or _JUDGED)) / 2
    scale = NormalDist().inv_cdf(confidence) / NormalDist().inv_cdf(upper)
    return grade.value - (grade.value - grade.lower) * max(scale, 0.0)
