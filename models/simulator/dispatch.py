"""Which replica gets a request.

A rule of :class:`Dispatch` knows replicas alone. :class:`Split` and :class:`Scored` know the request's bucket too, the
number that :class:`qplan.models.simulator.traffic.Traffic` carries for each. They are tables, so that compiled code
evaluates any such policy: the shares of a plan, or the marginal energy of one more request by what is in flight.
:class:`Ruled` is the online rule of energy-aware routing, which predicts latencies and learns from those it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Bools, Floats, Ints

if TYPE_CHECKING:
    from qplan.models.simulator.kernel import Rule


class Dispatch(StrEnum):
    """A rule that treats all requests alike."""

    ROUND_ROBIN = "round-robin"
    """In turn, in proportion to the replicas' weights."""

    LEAST_OUTSTANDING = "least-outstanding"
    """To the one with the fewest requests in it, by its weight."""

    RANDOM = "random"
    """At random, in proportion to the weights: of Poisson arrivals each replica then sees Poisson arrivals."""

    POWER_OF_TWO = "power-of-two"
    """To the one with fewer requests by its weight of two that are drawn (Mitzenmacher, IEEE TPDS 12, 2001)."""


@dataclass(frozen=True, slots=True, eq=False)
class Among:
    """One of those rules, among the replicas that each bucket may go to.

    Attributes
    ----------
    able : (B, R)
        A request is refused where no replica that is up may serve it.
    """

    rule: Dispatch
    able: Bools

    def __post_init__(self) -> None:
        if self.able.ndim != 2 or not self.able.any(axis=1).all():
            raise InputError("among: expected a row for each bucket, a column for each replica, one able in each row")


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


@dataclass(frozen=True, slots=True, eq=False)
class Ruled:
    """The online rule of energy-aware routing, which predicts latencies and learns from those it sees.

    Attributes
    ----------
    groups : (R,)
        The group of each replica.
    rule
        Its arrays, of G groups.
    routers
        Routers that follow it, each for itself; requests come to them at random. Each sees what it sent itself.
    scrape_s
        How often a router reads what engines say is in flight, which shows what the others sent; infinite: never.
    affinity
        Whether routers remember which replica served the last turn of a session.
    """

    groups: Ints
    rule: Rule
    routers: int = 1
    scrape_s: float = 1.0
    affinity: bool = True

    def __post_init__(self) -> None:
        rule = self.rule
        levels, buckets, groups = rule.worth_j.shape
        expected = _shapes(levels, len(rule.floor), buckets, groups, rule.in_flight.shape[1], rule.waits.shape[1])
        for name, shape in expected.items():
            if getattr(rule, name).shape != shape:
                raise InputError(f"rule: {name} of shape {getattr(rule, name).shape}; expected {shape}")
        if len(self.groups) and not 0 <= self.groups.min() <= self.groups.max() < groups:
            raise InputError(f"rule: expected groups of replicas from 0 to {groups - 1}")
        if self.routers < 1 or not self.scrape_s > 0:
            raise InputError(f"rule: {self.routers} routers that look every {self.scrape_s:g} s; expected more than 0")


def _shapes(levels: int, classes: int, buckets: int, groups: int, loads: int, times: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of a rule."""
    return {
        "loads_qps": (levels,),
        "energy_j": (buckets, groups),
        **dict.fromkeys(("worth_j", "planned"), (levels, buckets, groups)),
        "quality": (classes, groups),
        **dict.fromkeys(("floor", "deadline_s", "ttft_s", "e2e_s"), (classes,)),
        **dict.fromkeys(("bucket_class", "expected_tokens", "longest_tokens", "work"), (buckets,)),
        **dict.fromkeys(("prefill_s", "prefill_j", "kv_tokens", "max_sequences", "full_tpot_s"), (groups,)),
        **dict.fromkeys(("in_flight", "step_s", "tpot_s"), (groups, loads)),
        "among_j": (groups, buckets, loads),
        "waits": (classes, times, 2),
        "limits": (7,),
        "patience": (4,),
    }


Routing = Dispatch | Among | Split | Scored | Ruled
