"""Which replica gets a request.

A rule of :class:`Dispatch` knows replicas alone. :class:`Split` and :class:`Scored` know the request's bucket too, the
number that :class:`qplan.models.simulator.traffic.Traffic` carries for each. They are tables, so that compiled code
evaluates any such policy: the shares of a plan, or the marginal energy of one more request by what is in flight.
:class:`Ruled` is the online rule of energy-aware routing, which predicts latencies and learns from those it sees.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Bools, Floats, Ints


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
    """The replica where energy and predicted latencies beyond the SLOs cost least; of equals the fullest.

    L levels of load, K classes, B buckets, G groups of replicas, F numbers of requests in flight.

    Attributes
    ----------
    groups : (R,)
        The group of each replica.
    loads_qps : (L,)
        Loads up to which each level holds, rising.
    energy_j : (B, G)
        Of one more request where it is planned.
    worth_j : (L, B, G)
        Of the quality that it gets there.
    planned : (L, B, G)
        Elsewhere a request takes `among_j`, if that is more.
    quality : (K, G)
        NaN where a class may not go.
    floor : (K,)
        Least mean quality of a class; 0 without one.
    bucket_class : (B,)
    expected_tokens, longest_tokens : (B,)
        Mean and high quantile of the output that is expected.
    work : (B,)
        What a request counts in the load.
    ttft_s, e2e_s : (K,)
        Thresholds; infinite without one.
    prefill_s, kv_tokens, max_sequences : (G,)
        Seconds of a prompt token, and what a replica holds.
    in_flight, step_s, tpot_s : (G, F)
        Times of an iteration and of a token by the requests in flight, two of them or more; linear beyond the last.
    among_j : (G, B, F)
        Energy of a request among so many.
    limits : (8,)
        SLO on TPOT, cost of exceeding an SLO by its whole, factor from predicted latencies to those that are kept,
        quality saved with which its worth is a half, time constant of the load; gain of a ratio of observed over
        predicted, and the ratio's ends.
    """

    groups: Ints
    loads_qps: Floats
    energy_j: Floats
    worth_j: Floats
    planned: Bools
    quality: Floats
    floor: Floats
    bucket_class: Ints
    expected_tokens: Floats
    longest_tokens: Floats
    work: Floats
    ttft_s: Floats
    e2e_s: Floats
    prefill_s: Floats
    kv_tokens: Floats
    max_sequences: Floats
    in_flight: Floats
    step_s: Floats
    tpot_s: Floats
    among_j: Floats
    limits: Floats

    def __post_init__(self) -> None:
        levels, buckets, groups = self.worth_j.shape
        loads = self.in_flight.shape[1]
        expected = {
            "loads_qps": (levels,),
            "energy_j": (buckets, groups),
            "planned": (levels, buckets, groups),
            "among_j": (groups, buckets, loads),
            "quality": (len(self.floor), groups),
            **dict.fromkeys(("bucket_class", "expected_tokens", "longest_tokens", "work"), (buckets,)),
            **dict.fromkeys(("ttft_s", "e2e_s"), (len(self.floor),)),
            **dict.fromkeys(("prefill_s", "kv_tokens", "max_sequences"), (groups,)),
            **dict.fromkeys(("in_flight", "step_s", "tpot_s"), (groups, loads)),
            "limits": (8,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"rule: {name} of shape {getattr(self, name).shape}; expected {shape}")
        if len(self.groups) and not 0 <= self.groups.min() <= self.groups.max() < groups:
            raise InputError(f"rule: expected groups of replicas from 0 to {groups - 1}")

    def arrays(self) -> tuple[Any, ...]:
        """Return what the compiled rule reads, in its order, and its account: nothing saved, no load seen."""
        kinds: dict[str, type[np.generic]] = {"bucket_class": np.int64, "planned": np.bool_}
        given: list[Any] = [
            np.ascontiguousarray(getattr(self, one.name), dtype=kinds.get(one.name, np.float64))
            for one in fields(self)
            if one.name != "groups"
        ]
        return (*given, np.zeros(len(self.floor)), np.zeros(2))

    @classmethod
    def nothing(cls) -> Ruled:
        """Return a rule for no replica, which stands where the compiled loop reads none."""
        none, table, cube, ints = np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0, 0)), np.zeros(0, np.int64)
        return cls(
            *(ints, none, table, cube, np.zeros((0, 0, 0), bool), table, none, ints, none, none, none),
            *(none, none, none, none, none, table, table, table, cube, np.zeros(8)),
        )


Routing = Dispatch | Split | Scored | Ruled
