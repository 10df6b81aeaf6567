"""When a rate is sustained: which share of requests must meet which SLOs.

An SLO ``p99:ttft=1s`` holds when at least 99 % of the requests have their first token within a second. Several SLOs are
judged each at its own percentile (:meth:`Objective.each`), or all together: goodput, where a request counts only if it
meets every one of them (:meth:`Objective.jointly`).

A request that failed, timed out, was truncated or came back empty misses. One that we cancelled ourselves is a miss if
it was already too late by then, and otherwise says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qplan.core.errors import InputError, MeasurementError
from qplan.core.slo import Slo
from qplan.measure.load.requests import NOT_SAID, Outcome, Request


@dataclass(frozen=True, slots=True)
class Criterion:
    """At least the share `attainment` of the requests, below 1, meets every one of `slos`."""

    slos: tuple[Slo, ...]
    attainment: float

    def __post_init__(self) -> None:
        if not self.slos:
            raise InputError("no SLO to meet; expected at least one, such as p99:ttft=1s")
        if not 0 < self.attainment < 1:
            raise InputError(f"attainment {self.attainment:g}; expected a share between 0 and 1")

    @property
    def allowed(self) -> float:
        """Share of requests that may miss."""
        return 1 - self.attainment

    def severity(self, request: Request) -> float:
        """Return the largest latency of `request` over its threshold: more than 1 is a miss, NaN not known."""
        ratios = [_latency_s(slo.metric, request) / slo.threshold_s for slo in self.slos]
        known = max((ratio for ratio in ratios if not math.isnan(ratio)), default=0.0)
        cut_short = request.outcome is Outcome.CANCELLED and known <= 1
        return math.nan if cut_short else known

    def __str__(self) -> str:
        """Print the SLOs, and the attainment where it is not that of a single SLO's percentile."""
        if len(self.slos) == 1 and self.slos[0].percentile is not None:
            return str(self.slos[0])
        return f"{100 * self.attainment:g}% of {' and '.join(f'{s.metric}={s.threshold_s:g}s' for s in self.slos)}"


@dataclass(frozen=True, slots=True)
class Objective:
    """Criteria that all must hold."""

    criteria: tuple[Criterion, ...]

    @classmethod
    def each(cls, slos: Sequence[Slo], *, percentile: float = 90.0) -> Objective:
        """Hold each SLO to its own percentile; `percentile` is for those that name none."""
        placed = [slo.at(percentile) for slo in slos]
        return cls(tuple(Criterion((slo,), (slo.percentile or percentile) / 100) for slo in placed))

    @classmethod
    def jointly(cls, slos: Sequence[Slo], attainment: float = 0.95) -> Objective:
        """Ask that the share `attainment` of requests meets every SLO at once, whatever percentiles they name."""
        return cls((Criterion(tuple(slos), attainment),))

    def __post_init__(self) -> None:
        if not self.criteria:
            raise InputError("no SLO to meet; expected at least one, such as p99:ttft=1s")

    @property
    def allowed(self) -> tuple[float, ...]:
        """Share of requests that may miss, for each criterion."""
        return tuple(criterion.allowed for criterion in self.criteria)

    @property
    def patience_s(self) -> float:
        """Longest wait that still meets the SLOs: a shorter run cannot have missed them."""
        waits = [s.threshold_s for c in self.criteria for s in c.slos if s.metric in ("ttft", "e2e")]
        return max(waits, default=0.0)

    def severity(self, request: Request) -> tuple[float, ...]:
        """Return :meth:`Criterion.severity` of `request` for each criterion."""
        return tuple(criterion.severity(request) for criterion in self.criteria)


def _latency_s(metric: str, request: Request) -> float:
    """Return the latency; infinite for a failure, at least the time so far for a cancelled request, NaN if neither."""
    if request.outcome is Outcome.CANCELLED:
        so_far_s = request.end_s - request.sent_s
        if metric == "ttft":
            return request.ttft_s if request.chunk_s else so_far_s
        return so_far_s if metric == "e2e" else math.nan
    if request.outcome is not Outcome.OK:
        return math.inf
    match metric:
        case "ttft":
            return request.ttft_s
        case "e2e":
            return request.e2e_s
        case "itl":
            return request.itl_s
    if request.output_tokens == NOT_SAID:
        raise MeasurementError("the server counts no tokens (no 'usage' in its answers), so TPOT cannot be judged")
    return request.tpot_s
