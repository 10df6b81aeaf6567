"""Predictions with their intervals, many at a time, and one of them as an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.core.plan import Prediction
from qplan.models.intervals.support import Verdict
from qplan.models.steptimes import Bools, Floats


@dataclass(frozen=True, slots=True)
class Bounds:
    """N predictions with their intervals, in the unit of the target.

    Attributes
    ----------
    value, lower, upper : (N,)
        `lower` is 0 and `upper` infinite where the data are too few for any bound at this coverage.
    known : (N,)
        Whether the query's configuration is in the data.
    beyond : (N,)
        Whether the query lies farther from the data than nearly all held-out rows did, so that its interval is a
        guess: of truths at 2 to 12 times the largest load of the data, 90 % intervals held 46 to 85 %.
    coverage
        Share of queries whose truth is meant to lie between `lower` and `upper`.
    """

    value: Floats
    lower: Floats
    upper: Floats
    known: Bools
    beyond: Bools
    coverage: float

    def cover(self, truth: Floats) -> Bools:
        """Return which truths, (N,), lie inside."""
        covered: Bools = (self.lower <= truth) & (truth <= self.upper)
        return covered

    @property
    def log_width(self) -> Floats:
        """Logarithm of upper over lower end, (N,); infinite where there is no bound."""
        width = np.full(len(self.value), np.inf)
        finite = (self.lower > 0) & np.isfinite(self.upper)
        width[finite] = np.log(self.upper[finite] / self.lower[finite])
        return width

    def prediction(self, row: int, verdict: Verdict) -> Prediction:
        """Return one answer, with all that is to be said of it in its basis.

        Parameters
        ----------
        row
            Which of the N.
        verdict
            What :class:`~qplan.models.intervals.support.Support` says of the query.

        Raises
        ------
        InputError
            The query is refused.
        """
        verdict.require()
        bounded = bool(np.isfinite(self.upper[row]))
        said = ["a configuration in the data" if self.known[row] else "a configuration never measured: from others"]
        if not bounded:
            said.append("no interval: too few cases were held out, or none so far from the data")
        elif self.beyond[row]:
            said.append("farther from the data than cases whose error is known: the interval is a guess")
        return Prediction(
            float(self.value[row]),
            float(self.lower[row]),
            float(self.upper[row]),
            self.coverage if bounded and not self.beyond[row] else None,
            "; ".join([*said, *verdict.warnings]),
        )
