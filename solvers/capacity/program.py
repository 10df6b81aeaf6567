"""The matrix program of a capacity problem.

Columns, in this order::

    share[p]   one for each eligible pair p = (class k, deployment d), by class, then deployment: the fraction
               of class k that d serves, times the demand scale
    count[d]   replicas of deployment d, integer
    scale      the demand scale; fixed to 1, except where the question is how much demand a fleet carries
    used[d]    1 if there are replicas of d; only with a spare
    (further columns belong to whoever appends them)

Rows, in this order::

    demand[k]     sum of class k's shares = scale
    capacity[d]   sum of load[k, d] * share over d's pairs - count[d] <= 0
    inventory[g]  sum of gpus[d] * count[d] over g's deployments <= inventory[g]; only finite ones
    used[d]       count[d] - most_replicas[d] * used[d] <= 0; only with a spare
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import MatrixProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.capacity.problem import CapacityProblem


@dataclass(frozen=True, slots=True, eq=False)
class CapacityProgram:
    """A problem's matrix program, and where its columns stand.

    Attributes
    ----------
    problem
        The problem, all D deployments.
    kept : ndarray of int, shape (D',)
        The deployments that have columns.
    pair_class, pair_kept : ndarray of int, shape (P,)
        Class of each pair, and the position of its deployment in `kept`.
    matrix
        The program; minimises nothing yet.
    share, count, used : ndarray of int
        Column indices, of length P, D' and D' (or 0 without a spare).
    scale
        Column index.
    """

    problem: CapacityProblem
    kept: NDArray[np.int64]
    pair_class: NDArray[np.int64]
    pair_kept: NDArray[np.int64]
    matrix: MatrixProgram
    share: NDArray[np.int64]
    count: NDArray[np.int64]
    used: NDArray[np.int64]
    scale: int

    def with_matrix(self, matrix: MatrixProgram) -> CapacityProgram:
        """Return the program with rows or columns appended."""
        return replace(self, matrix=matrix)

    def minimising(self, price: NDArray[np.float64]) -> CapacityProgram:
        """Return the program that minimises what the replicas cost at `price` each, shape (D,)."""
        return self.with_matrix(self.matrix.with_cost(self.count, price[self.kept]))

    def spending_at_most(self, price: NDArray[np.float64], most: float) -> CapacityProgram:
        """Return the program whose replicas cost at most `most` at `price` each, shape (D,)."""
        return self.with_matrix(self.matrix.with_row(self.count, price[self.kept], upper=most))

    def reaching_quality(self, least: float) -> CapacityProgram:
        """Return the program whose traffic-weighted quality is at least `least`, at any demand scale."""
        columns, values = np.append(self.share, self.scale), np.append(self.pair_quality, -least)
        return self.with_matrix(self.matrix.with_row(columns, values, lower=0.0))

    def most_demand(self, *, at_least: float, at_most: float = np.inf) -> CapacityProgram:
        """Return the program that maximises the demand scale between two limits."""
        matrix = self.matrix.with_bounds([self.scale], at_least, at_most)
        return self.with_matrix(matrix.with_cost([self.scale], -1.0))

    @property
    def pair_quality(self) -> NDArray[np.float64]:
        """What one unit of each share adds to the fleet's traffic-weighted quality. Shape (P,)."""
        weight = self.problem.rate_qps / self.problem.rate_qps.sum()
        quality = self.problem.quality[self.pair_class, self.kept[self.pair_kept]]
        return np.asarray(weight[self.pair_class] * quality)

    def counts(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the replicas of all D deployments in a solution."""
        counts = np.zeros(len(self.problem.deployments), np.int64)
        counts[self.kept] = np.round(values[self.count]).astype(np.int64)
        return counts

    def assignment(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the fraction of each class on each deployment in a solution; rows sum to 1. Shape (K, D)."""
        assignment = np.zeros(self.problem.capacity_qps.shape)
        assignment[self.pair_class, self.kept[self.pair_kept]] = np.maximum(values[self.share], 0.0)
        return np.asarray(assignment / assignment.sum(1, keepdims=True))


def build(problem: CapacityProblem, kept: NDArray[np.int64]) -> CapacityProgram:
    """Return the program of `problem` over the deployments `kept`."""
    load = problem.load[:, kept]
    pair_class, pair_kept = np.nonzero(load)
    n_classes, n_kept, n_pairs = len(problem.classes), len(kept), len(pair_class)
    names = [problem.deployments[d] for d in kept]

    share = np.arange(n_pairs)
    count = n_pairs + np.arange(n_kept)
    scale = n_pairs + n_kept
    most = problem.most_replicas[kept]
    empty = np.empty(0)
    matrix = (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns([f"share {problem.classes[k]} {names[d]}" for k, d in zip(pair_class, pair_kept, strict=True)])
        .with_columns([f"count {name}" for name in names], upper=most, integer=True)
        .with_columns(["scale"], lower=1.0, upper=1.0)
    )
    every_class = np.arange(n_classes)
    matrix = matrix.with_rows(
        np.concatenate([pair_class, every_class]),
        np.concatenate([share, np.full(n_classes, scale)]),
        np.concatenate([np.ones(n_pairs), -np.ones(n_classes)]),
        np.zeros(n_classes),
        np.zeros(n_classes),
    )
    matrix = matrix.with_rows(
        np.concatenate([pair_kept, np.arange(n_kept)]),
        np.concatenate([share, count]),
        np.concatenate([load[pair_class, pair_kept], -np.ones(n_kept)]),
        np.full(n_kept, -np.inf),
        np.zeros(n_kept),
    )
    for g in np.flatnonzero(np.isfinite(problem.inventory)):
        of_type = np.flatnonzero(problem.gpu_type[kept] == g)
        if of_type.size:
            matrix = matrix.with_row(count[of_type], problem.gpus[kept[of_type]], upper=float(problem.inventory[g]))
    used = np.empty(0, np.int64)
    if problem.spare:
        used = scale + 1 + np.arange(n_kept)
        every = np.arange(n_kept)
        matrix = matrix.with_columns([f"used {name}" for name in names], upper=1.0, integer=True).with_rows(
            np.concatenate([every, every]),
            np.concatenate([count, used]),
            np.concatenate([np.ones(n_kept), -most]),
            np.full(n_kept, -np.inf),
            np.zeros(n_kept),
        )
    return CapacityProgram(problem, kept, pair_class, pair_kept, matrix, share, count, used, scale)
