"""Request classes cut into buckets of about one length.

A plan assigns buckets, so that long requests of a class can go elsewhere than short ones. What one replica carries of
a bucket alone is where the bucket's own requests just keep the class's SLOs at their percentiles: then the class keeps
them however it is spread. That is a stronger promise than the SLO, which is on the class as a whole, and it costs
capacity where the longest requests are the ones that may miss it. So a class is cut only as far as it pays: of several
cuts, :func:`worthwhile` takes the coarsest that serves a request at nearly the least cost. A class that is not cut is
planned at the limit of its own mix.

Buckets on one replica are taken to add: a replica is full when the utilisations by its buckets sum to 1, each the rate
of the bucket over its rate alone, as in Mélange (arXiv 2404.14527).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.workload import Workload
from qplan.models.steptimes import Floats, Ints

#: Quantiles of input and output length between which a class is cut: not at all, coarsely, finely.
EDGES = (((0.0, 1.0), (0.0, 1.0)), ((0.0, 0.8, 1.0), (0.0, 1.0)), ((0.0, 0.5, 0.9, 1.0), (0.0, 0.5, 1.0)))

#: By how much a finer cut must be cheaper to be worth it.
_WORTH = 0.01


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of one class that are of about one length: their finer mix, and their share of the class."""

    mix: Workload
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """B buckets of K classes, those of one class after another's.

    Attributes
    ----------
    request_class : (B,)
        Index of the class.
    mixes : (B,)
        The finer lengths in each bucket.
    weight : (B,)
        Share of the class's requests.
    """

    request_class: Ints
    mixes: tuple[Workload, ...]
    weight: Floats

    @classmethod
    def of(cls, classes: Sequence[Sequence[Bucket]]) -> Buckets:
        """Make the buckets of classes that are cut, each into its own."""
        every = [(k, bucket) for k, one in enumerate(classes) for bucket in one]
        return cls(
            np.array([k for k, _ in every], dtype=np.intp),
            tuple(bucket.mix for _, bucket in every),
            np.array([bucket.weight for _, bucket in every]),
        )

    def __len__(self) -> int:
        return len(self.mixes)

    def of_class(self, index: int) -> Ints:
        """Return the places of one class's buckets."""
        return np.flatnonzero(self.request_class == index)


def cuts(workload: Workload) -> list[tuple[Bucket, ...]]:
    """Return ways to cut a workload, the coarsest first, which is not at all."""
    found: list[tuple[Bucket, ...]] = []
    for inputs, outputs in EDGES:
        cut = _cut(workload, inputs, outputs)
        if all(len(cut) != len(other) for other in found):
            found.append(cut)
    return found


def worthwhile(weights: Sequence[Floats], capacity_qps: Sequence[Floats], price: Floats) -> int:
    """Return the coarsest cut that serves a request at nearly the least cost, were replicas divisible and unlimited.

    Parameters
    ----------
    weights : per cut, (B,)
        Share of each bucket.
    capacity_qps : per cut, (B, D)
        What a replica carries of each bucket alone.
    price : (D,)
        Of a replica.
    """
    with np.errstate(divide="ignore"):
        costs = [
            float(weight @ (price / capacity).min(axis=1))
            for weight, capacity in zip(weights, capacity_qps, strict=True)
        ]
    return next(n for n, cost in enumerate(costs) if cost <= min(costs) * (1 + _WORTH))


def _cut(workload: Workload, input_edges: Sequence[float], output_edges: Sequence[float]) -> tuple[Bucket, ...]:
    lengths = np.array([(one.input_tokens, one.output_tokens, one.weight) for one in workload.buckets])
    row = _bins(lengths[:, 0], lengths[:, 2], input_edges)
    cell = row * len(output_edges) + _bins(lengths[:, 1], lengths[:, 2], output_edges)
    return tuple(
        Bucket(
            Workload.of(workload.name, workload.task, map(tuple, lengths[cell == one].tolist()), workload.source),
            float(lengths[cell == one, 2].sum()),
        )
        for one in np.unique(cell)
    )


def _bins(values: Floats, weights: Floats, edges: Sequence[float]) -> Ints:
    """Return the quantile bin of each weighted value; equal values share a bin."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order] / 2
    cuts = values[order][np.minimum(np.searchsorted(below, edges[1:-1]), len(values) - 1)]
    return np.searchsorted(np.unique(cuts), values, side="right")
