"""What a replica carries of several kinds of requests at once, within the objectives of all that it serves.

A linear program needs a capacity ``c[b]`` of each bucket ``b`` of requests alone, and takes for full a replica with
``sum(rate[b] / c[b]) = 1``. For waits that decay at a given rate this is exact: a bucket's load is its *effective
bandwidth* (Kelly, *Effective bandwidths at multi-class queues*, Queueing Systems 9, 1991; of queues with Poisson
arrivals, section 2). But the bandwidth is that of one delay constraint. Where a replica serves several classes, each
puts a constraint of its own on what all of them send, and the strictest binds: long prompts that are content with a
TTFT of 10 s make a short one wait that is promised 300 ms. Taking each class at its own limit, as the published
formulation does (Mélange, arXiv 2404.14527, section 5), misses this.

So capacities belong to a *set of classes* ``S`` that a replica serves::

    c[b, S] = min over k in S of the highest rate of b alone at which requests of class k, a few among them, meet
              the objectives of k

that is, the corners of the region of rates within all objectives, as far as they are known from
:meth:`~qplan.models.sharing.SharingModel.at` with ``seen_by``. Where the region bends inwards between the corners
(full KV caches do that: long sequences take the slots of short ones), all corners of the set are drawn in by what the
worst of a few mixes between them asks for. For a single class the same holds of its buckets: one that gets its long
requests alone may be full before the time that they take says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Bools, Floats, Ints

FINEST = 8
"""Mixes of two classes are tried at utilisations that are multiples of one over this, those of more at coarser ones."""

_HALVINGS = 7
_LEAST = 1 / 32  # of a capacity; below it there is none
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Mixing:
    """K classes cut into B buckets on D deployments.

    Attributes
    ----------
    classes, slos : (K,)
        The mix of each class, and its objectives, each with a percentile.
    buckets, bucket_class, weight : (B,)
        The mix of each bucket, its class, and its share of the class's requests.
    qps : (B, D)
        Rate of each bucket alone that a replica carries, as far as the bucket's own class is concerned; 0: none.
    corner : (B, K, D)
        Factor on it at which each class meets its objectives among the bucket's requests; at most 1.
    """

    model: SharingModel
    classes: tuple[Workload, ...]
    slos: tuple[tuple[Slo, ...], ...]
    buckets: tuple[Workload, ...]
    bucket_class: Ints
    weight: Floats
    qps: Floats
    corner: Floats

    @classmethod
    def of(
        cls,
        model: SharingModel,
        classes: Sequence[Workload],
        slos: Sequence[Sequence[Slo]],
        buckets: Sequence[Workload],
        bucket_class: Ints,
        weight: Floats,
        qps: Floats,
    ) -> Mixing:
        """Find the corners; the arguments are those of the attributes."""
        objectives = tuple(map(tuple, slos))
        corner = np.stack(
            [
                [_factor(model, one, qps[b], seen_by, objectives[k]) for k, seen_by in enumerate(classes)]
                for b, one in enumerate(buckets)
            ]
        )
        return cls(model, tuple(classes), objectives, tuple(buckets), bucket_class, weight, qps, corner)

    def together(self, served: Sequence[int]) -> Floats:
        """Return the capacities, (B, D), on replicas that serve these classes and no other.

        0 for the buckets of other classes, and on deployments that cannot serve all of `served`.
        """
        chosen = np.isin(self.bucket_class, served)
        qps = np.where(chosen[:, None], self.qps * self.corner[:, list(served)].min(axis=1), 0.0)
        able = np.asarray((qps[chosen] > 0).all(axis=0))
        qps[:, ~able] = 0.0
        if len(served) > 1 and able.any():
            qps[:, able] = qps[:, able] * self._bend(served, qps[:, able], able)
        return qps

    def _bend(self, served: Sequence[int], qps: Floats, able: Bools) -> Floats:
        """Return the factor on all corners at which the mixes between them hold too; of the `able` deployments."""
        model = _taken(self.model, np.flatnonzero(able))
        alone = np.stack([self._of_class(k, qps) for k in served])
        typical = np.exp(np.log(alone).mean(axis=1))
        worst = np.ones(alone.shape[1])
        for used in _between(len(served)):
            rates = used * typical
            parts = rates / rates.sum()
            blend = _blend([self.classes[k] for k in served], parts)
            full = 1 / (parts[:, None] / alone).sum(axis=0)
            for k in served:
                worst = np.minimum(worst, _factor(model, blend, full * worst, self.classes[k], self.slos[k]) * worst)
        return worst

    def _of_class(self, k: int, qps: Floats) -> Floats:
        """Return the capacity for a class's own mix, (D,), by those of its buckets."""
        mine = self.bucket_class == k
        return np.asarray(1 / (self.weight[mine, None] / qps[mine]).sum(axis=0))


def _factor(model: SharingModel, load: Workload, rate: Floats, seen_by: Workload, slos: Sequence[Slo]) -> Floats:
    """Return the largest factor up to 1 on `rate` (D,) of `load` at which requests of `seen_by` meet `slos`; or 0."""
    factor = np.zeros(len(rate))
    held = rate > 0
    met = held & _met(model, load, np.where(held, rate, 1e-12), seen_by, slos)
    factor[met] = 1.0
    sought = np.flatnonzero(held & ~met)
    if not len(sought):
        return factor
    part, rate = _taken(model, sought), rate[sought]
    low, high = np.full(len(sought), _LEAST), np.ones(len(sought))
    never = ~_met(part, load, rate * low, seen_by, slos)
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        good = _met(part, load, rate * middle, seen_by, slos)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    factor[sought] = np.where(never, 0.0, low)
    return factor


def _met(model: SharingModel, load: Workload, rate: Floats, seen_by: Workload, slos: Sequence[Slo]) -> Bools:
    replicas = model.at(load, rate, seen_by)
    met = replicas.stable
    for slo in slos:
        assert slo.percentile is not None
        met = met & (replicas.attainment(slo.metric, slo.threshold_s) >= slo.percentile / 100 - _ROUNDING)
    return met


def _taken(model: SharingModel, index: Ints) -> SharingModel:
    return SharingModel(model.steps.take(index), model.kv_tokens[index], model.max_context[index])


def _between(classes: int) -> Iterator[Floats]:
    """Yield utilisations by class, (classes,), of mixes that hold at least two of them."""
    steps = max(2, FINEST // (classes - 1))
    for units in product(range(steps), repeat=classes):
        if sum(units) == steps:
            yield np.array(units) / steps


def _blend(workloads: Sequence[Workload], parts: Floats) -> Workload:
    triples = [
        (bucket.input_tokens, bucket.output_tokens, bucket.weight * part)
        for workload, part in zip(workloads, parts, strict=True)
        for bucket in workload.buckets
        if part > 0
    ]
    names = " + ".join(workload.name for workload in workloads)
    return Workload.of(names, workloads[0].task, triples, "mix of classes")
