"""Power curves of GPUs: the law, its coefficients for an architecture, and how far they were off.

As a fraction of the GPU's TDP, with ``u`` and ``v`` the shares of its peak memory bandwidth and of its peak 16-bit
arithmetic that an iteration uses::

    p = idle + (1 - idle) (1 - exp(-(memory u + compute v)))

At low utilisation this is the linear model of Fan, Weber & Barroso (*Power Provisioning for a Warehouse-sized
Computer*, 2007) with energy for each byte and each operation; towards the TDP it saturates, as the clocks fall when
the power limit binds. The three coefficients are fitted for an architecture
(:mod:`qplan.models.power.fit`); shares of the TDP carry them to GPUs that nobody measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.models.steptimes import Floats


@dataclass(frozen=True, slots=True)
class Curve:
    """Power of a GPU as a fraction of its TDP; see the module's docstring.

    Attributes
    ----------
    idle
        At no utilisation: of an engine that runs but computes nothing.
    memory, compute
        Initial slopes over the shares of peak bandwidth and of peak 16-bit arithmetic, divided by ``1 - idle``.
    """

    idle: float
    memory: float
    compute: float

    def at(self, memory_share: Floats, compute_share: Floats) -> Floats:
        """Return the fraction of the TDP, (N,)."""
        fraction: Floats = self.idle - (1 - self.idle) * np.expm1(
            -(self.memory * memory_share + self.compute * compute_share)
        )
        return fraction


@dataclass(frozen=True, slots=True)
class Ratio:
    """Central 90 % range of measured over predicted power in a test on held-out data."""

    lower: float
    upper: float

    def __mul__(self, other: Ratio) -> Ratio:
        """Compound two independent sources of error, as if both were at their end at once."""
        return Ratio(self.lower * other.lower, self.upper * other.upper)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What was fitted for one architecture.

    Attributes
    ----------
    gpus
        Those that were measured.
    error
        On models left out of the fit.
    max_memory_share, max_compute_share
        Largest utilisations in the data.
    source
        Where the data come from, in words.
    """

    name: str
    curve: Curve
    gpus: tuple[str, ...]
    error: Ratio
    max_memory_share: float
    max_compute_share: float
    source: str


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the curve of the mean coefficients: what is known of an architecture that was not measured."""
    total = (sum(column) for column in zip(*((one.idle, one.memory, one.compute) for one in curves), strict=True))
    return Curve(*(value / len(curves) for value in total))
