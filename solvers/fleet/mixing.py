"""Options that differ in whom they serve.

What a replica carries depends on the set of classes that it serves (:mod:`qplan.models.mixing`), and a linear program
cannot know that set before it is solved. So a deployment becomes several options, one for each set of classes that is
worth telling apart, each with the capacities of that set: the program then decides which classes share replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.slo import Slo
from qplan.core.workload import Workload
from qplan.models.mixing import Mixing
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Floats, Ints, StepTimes
from qplan.solvers.fleet.buckets import Buckets

ALL_SETS = 4
"""Up to so many classes every set of them is an option; of more, single classes, pairs and all together."""


@dataclass(frozen=True, slots=True, eq=False)
class Modes:
    """O options made of D deployments.

    Attributes
    ----------
    base : (O,)
        Index of the deployment; ascending.
    classes : (O,)
        Indices of the classes that the option serves.
    capacity_qps : (B, O)
        Rate of each bucket alone that a replica takes; 0 for the buckets of other classes.
    """

    base: Ints
    classes: tuple[tuple[int, ...], ...]
    capacity_qps: Floats


def modes(
    deployments: Sequence[Deployment],
    steps: StepTimes,
    buckets: Buckets,
    classes: Sequence[Workload],
    slos: Sequence[Sequence[Slo]],
    capacity_qps: Floats,
) -> Modes:
    """Make options of D deployments for sets of K classes.

    Sets are left out that some larger set serves as well, and those that a deployment cannot serve.

    Parameters
    ----------
    deployments, steps : (D,)
    classes, slos : (K,)
    capacity_qps : (B, D)
        Rate of each bucket alone that a replica takes as far as its own class is concerned; 0 where it may not.
    """
    sets = _sets(len(classes))
    model = SharingModel.of(deployments, steps)
    mixing = Mixing.of(
        model, classes, slos, buckets.mixes, buckets.request_class, np.asarray(buckets.weight), capacity_qps
    )
    together = np.stack([mixing.together(served) for served in sets])
    kept = [
        (d, n)
        for d in range(capacity_qps.shape[1])
        for n in range(len(sets))
        if together[n, :, d].any() and not _covered(together[:, :, d], n, sets)
    ]
    base, chosen = np.array(kept, dtype=np.intp).reshape(-1, 2).T
    return Modes(base, tuple(sets[n] for n in chosen), together[chosen, :, base].T)


def _sets(classes: int) -> list[tuple[int, ...]]:
    every = range(1, classes + 1)
    sizes = every if classes <= ALL_SETS else (1, 2, classes)
    return [served for size in sizes for served in combinations(range(classes), size)]


def _covered(together: Floats, n: int, sets: Sequence[tuple[int, ...]]) -> bool:
    """Whether a larger set has the same capacities for these classes; `together` is (sets, B), of one deployment."""
    return any(
        set(sets[n]) < set(other) and together[m].any() and (together[m] >= together[n]).all()
        for m, other in enumerate(sets)
    )
