"""Arrival processes of an open loop: when requests are sent, drawn beforehand from one seeded stream.

A process is a sequence of gaps of mean one, scaled to the rate. The same seed therefore gives the same pattern at every
rate, faster or slower, which keeps the luck of the draw out of comparisons between rates. Processes that share the work
take every n-th time of the one schedule: slicing leaves the whole as it was, drawing in each would not.

::

    arrivals = "poisson" | "constant" | "gamma:cv=" CV | "ramp:to=" FACTOR "x"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.core.units import parse_number
from qplan.measure.load.requests import Floats

_PARAMETERS = {"poisson": "", "constant": "", "gamma": "cv", "ramp": "to"}
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An arrival process, up to its rate.

    Attributes
    ----------
    kind
        ``poisson``; ``constant``, evenly spaced; ``gamma``, gaps of the Gamma distribution; ``ramp``, Poisson arrivals
        whose rate changes linearly.
    parameter
        Of ``gamma`` the coefficient of variation of the gaps (1 is Poisson, more is burstier); of ``ramp`` the rate at
        the end over that at the start; else 1.
    """

    kind: str = "poisson"
    parameter: float = 1.0

    @classmethod
    def parse(cls, text: str, where: str = "--arrivals") -> Arrivals:
        """Read ``poisson``, ``constant``, ``gamma:cv=2`` or ``ramp:to=2x``; `where` names the flag in an error."""
        kind, _, given = text.strip().casefold().partition(":")
        if kind not in _PARAMETERS:
            raise InputError(
                f"{where}: unknown arrivals '{text}'; expected poisson, constant, gamma:cv=2 or ramp:to=2x"
                f"{nearest(kind, _PARAMETERS)}"
            )
        name = _PARAMETERS[kind]
        if not name and not given:
            return cls(kind)
        key, _, number = given.partition("=")
        if not name or key.strip() != name:
            example = {"gamma": "gamma:cv=2", "ramp": "ramp:to=2x"}.get(kind, kind)
            raise InputError(f"{where}: cannot read '{text}'; expected {example}")
        value = parse_number(number.removesuffix("x") if kind == "ramp" else number, where)
        if value <= 0:
            raise InputError(f"{where}: '{text}' has {name} of {value:g}; expected more than 0")
        return cls(kind, value)

    def schedule(
        self, rate_qps: float, *, duration_s: float | None = None, count: int | None = None, seed: int = 0
    ) -> Floats:
        """Draw the times at which to send, ascending seconds from 0, shape ``(n,)``.

        Give `duration_s` (`n` is then as many as arrive within it) or `count`. `rate_qps` is the mean rate, of a ramp
        that at its start.
        """
        if rate_qps <= 0:
            raise InputError(f"rate of {rate_qps:g} requests per second; expected more than 0")
        if (duration_s is None) == (count is None):
            raise InputError("a schedule needs either a duration or a number of requests")
        if duration_s is not None and duration_s <= 0:
            raise InputError(f"duration of {duration_s:g} s; expected more than 0")
        if self.kind == "ramp":
            span_s = duration_s or 2 * (count or 0) / (rate_qps * (1 + self.parameter))
            return self._ramp(rate_qps, span_s, self._unit_times(seed, count, rate_qps * span_s * self._mean_factor))
        return self._unit_times(seed, count, rate_qps * (duration_s or 0.0)) / rate_qps

    @property
    def _mean_factor(self) -> float:
        return (1 + self.parameter) / 2

    def _ramp(self, rate_qps: float, span_s: float, units: Floats) -> Floats:
        """Put arrivals of rate one where the intensity ``rate (1 + (factor - 1) t / span)`` has that integral."""
        slope = rate_qps * (self.parameter - 1) / span_s if span_s else 0.0
        if slope == 0:
            return units / rate_qps
        # Beyond the end of a falling ramp nothing arrives; only a fixed count can reach there, by luck of the draw.
        return (np.sqrt(np.maximum(rate_qps**2 + 2 * slope * units, 0.0)) - rate_qps) / slope

    def _unit_times(self, seed: int, count: int | None, until: float) -> Floats:
        """Return arrivals at rate one: `count` of them, or those before `until`."""
        random = np.random.default_rng(seed)
        blocks = [self._gaps(random, count if count is not None else _BLOCK)]
        while count is None and sum(map(float, (block.sum() for block in blocks))) < until:
            blocks.append(self._gaps(random, _BLOCK))
        gaps = np.concatenate(blocks)
        times: Floats = np.cumsum(gaps)
        if self.kind == "constant":
            times = times - 1.0
        return times if count is not None else times[times < until]

    def _gaps(self, random: np.random.Generator, count: int) -> Floats:
        if self.kind == "constant":
            return np.ones(count)
        if self.kind == "gamma":
            shape = 1 / self.parameter**2
            return random.standard_gamma(shape, count) / shape
        return random.standard_exponential(count)

    def __str__(self) -> str:
        """Print in the grammar it is read from."""
        suffix = {"gamma": f":cv={self.parameter:g}", "ramp": f":to={self.parameter:g}x"}
        return self.kind + suffix.get(self.kind, "")
