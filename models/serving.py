"""The contract of a serving model: from deployments and a request mix to latencies at a rate.

An implementation must pass :class:`qplan.models.conformance.ServingModelConformance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.steptimes import Floats


class LoadedReplicas(Protocol):
    """D replicas, each at its own request rate; arrays are (D,)."""

    def mean(self, metric: str) -> Floats:
        """Return the mean of ``ttft``, ``tpot``, ``itl`` or ``e2e`` in seconds; infinite beyond saturation."""
        ...

    def attainment(self, metric: str, threshold_s: float) -> Floats:
        """Return the share of requests (of gaps, for ``itl``) whose `metric` is at most `threshold_s`."""
        ...

    def percentile(self, metric: str, percentile: float) -> Floats:
        """Return the `percentile` of `metric` in seconds; infinite beyond saturation."""
        ...

    @property
    def output_tokens_per_s(self) -> Floats:
        """Generated tokens per second of each replica."""
        ...


class ServingModel(Protocol):
    """Latency and throughput of D deployments under Poisson arrivals.

    Every implementation is monotone in load: a higher rate never lowers a percentile and never raises attainment.
    """

    def at(self, workload: Workload, rate_qps: Floats) -> LoadedReplicas:
        """Load each deployment with `workload` at its `rate_qps` (D,) requests/s per replica."""
        ...

    def saturation_qps(self, workload: Workload, slos: Sequence[Slo]) -> Floats:
        """Return the highest rate per replica, (D,) requests/s, that meets all `slos`; 0 where none does.

        Every SLO has its percentile set.
        """
        ...
