"""Which replica gets a request.

A rule of :class:`Dispatch` knows replicas alone. :class:`Split` and :class:`Scored` know the request's bucket too, the
number that :class:`qplan.models.simulator.traffic.Traffic` carries for each. They are tables, so that compiled code
evaluates any such policy: the shares of a plan, or the marginal energy of one more request by what is in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Floats, Ints


class Dispatch(StrEnum):
    """A rule that treats all requests alike."""

    ROUND_ROBIN = "round-robin"
    """In turn, in proportion to the replicas' weights."""

    LEAST_OUTSTANDING = "least-outstanding"
    """To the one with the fewest requests in it, by its weight."""

    RANDOM = "random"
    """At random, in proportion to the weights: of Poisson arrivals each replica then sees Poisson arrivals."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """At random, by weights of each bucket; replicas that are down take no part.

    Attributes
    ----------
    weights : (B, R)
        At least 0, in any unit. A request is refused where no replica that is up has any.
    """

    weights: Floats

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or not np.isfinite(self.weights).all() or (self.weights < 0).any():
            raise InputError("split: expected weights of at least 0, a row for each bucket, a column for each replica")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """To the replica with the lowest score; of equals to the one with the fewest requests by its weight.

    Attributes
    ----------
    scores : (B, G, F)
        Of one more request of a bucket on a replica of a group that has f in flight; F - 1 stands for all more.
        Infinite where the request may not go: it is refused where that is so of every replica that is up.
    groups : (R,)
        The group of each replica.
    """

    scores: Floats
    groups: Ints

    def __post_init__(self) -> None:
        if self.scores.ndim != 3 or 0 in self.scores.shape or np.isnan(self.scores).any():
            raise InputError("scores: expected numbers, by bucket, group of replicas and requests in flight")
        if len(self.groups) and not 0 <= self.groups.min() <= self.groups.max() < self.scores.shape[1]:
            raise InputError(f"scores: expected groups of replicas from 0 to {self.scores.shape[1] - 1}")


Routing = Dispatch | Split | Scored
