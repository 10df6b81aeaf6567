"""Latencies of any number of requests in a fixed space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.models.simulator.state import Records
from qplan.models.steptimes import Bools, Floats, Ints

METRICS = ("ttft", "tpot", "e2e")


class Sketch:
    """A histogram of positive values whose bins grow in proportion, from which percentiles are read.

    A percentile is the value of that rank within :attr:`RELATIVE_ERROR`, between a microsecond and some eleven days
    (DDSketch: Masson, Rim and Lee, VLDB 2019, section 2). Counts of two sketches can be added.
    """

    RELATIVE_ERROR = 1e-3
    _SMALLEST, _LARGEST = 1e-6, 1e6
    _LOG_GROWTH = float(np.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)))

    def __init__(self) -> None:
        self.counts: Ints = np.zeros(int(np.log(self._LARGEST / self._SMALLEST) / self._LOG_GROWTH) + 2, np.int64)
        self.total = 0.0

    def add(self, values: Floats) -> None:
        """Add positive values."""
        clipped = np.clip(values, self._SMALLEST, self._LARGEST)
        bins = np.ceil(np.log(clipped / self._SMALLEST) / self._LOG_GROWTH).astype(np.int64)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.total += float(values.sum())

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean, exact; NaN of none."""
        return self.total / self.count if self.count else float("nan")

    def percentile(self, percentile: float) -> float:
        """Return the value below which `percentile` of all lie; NaN where there is none."""
        if not self.count:
            return float("nan")
        rank = percentile / 100 * (self.count - 1)
        place = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        middle = np.exp(place * self._LOG_GROWTH) * (1 - self.RELATIVE_ERROR)  # as near to one edge as to the other
        return float(self._SMALLEST * middle)


class Summary:
    """What became of the requests so far.

    Parameters
    ----------
    slos
        Objectives to count, each with a percentile or without; on TTFT, TPOT or E2E.

    Attributes
    ----------
    requests, rejected, preemptions
        All requests; those that no replica could hold, which meet no SLO; and how often one lost its KV cache.
    latencies
        Of the others by metric; TPOT of answers of two tokens or more.
    met, met_all
        Requests that met each SLO, and all of them. An answer of one token meets any SLO on TPOT.

    Raises
    ------
    InputError
        An SLO is on single gaps between tokens, which are not kept.
    """

    def __init__(self, slos: Sequence[Slo] = ()) -> None:
        for slo in slos:
            if slo.metric not in METRICS:
                raise InputError(
                    f"SLO {slo}: the simulator keeps no single gaps between tokens; expected ttft, tpot or e2e"
                )
        self.slos = tuple(slos)
        self.requests = self.rejected = self.preemptions = self.met_all = 0
        self.latencies = {metric: Sketch() for metric in METRICS}
        self.met = [0] * len(self.slos)

    def add(self, done: Records) -> None:
        """Count requests that are done."""
        served: Bools = ~np.isnan(done["e2e_s"])
        self.requests += len(done)
        self.rejected += int(len(done) - served.sum())
        self.preemptions += int(done["preemptions"].sum())
        all_met = served.copy()
        for n, slo in enumerate(self.slos):
            met = served & ~(done[f"{slo.metric}_s"] > slo.threshold_s)  # NaN: a TPOT of one token
            self.met[n] += int(met.sum())
            all_met &= met
        self.met_all += int(all_met.sum())
        for metric, sketch in self.latencies.items():
            values = done[f"{metric}_s"]
            sketch.add(values[~np.isnan(values)])
