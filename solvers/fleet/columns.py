"""A fleet program: where its columns and rows stand, and what a solution of it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.solvers.backends import MatrixProgram
from qplan.solvers.fleet.measures import (
    Rates,
    per_gpu_held,
    per_replica,
    per_share,
    per_start,
    rates,
)
from qplan.solvers.fleet.nodes import nodes_needed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.fleet.problem import FleetProblem

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FleetProgram:
    """A problem's matrix program, and where its columns and rows stand.

    Attributes
    ----------
    problem
        The problem, all D options.
    kept : ndarray of int, shape (D',)
        The options that have columns.
    pair : tuple of three ndarray of int, shape (P,)
        Bucket, position in `kept`, and period of each share.
    loads : ndarray of shape (P,)
        Replicas that all of the pair's bucket keeps busy.
    matrix
        The program; minimises nothing yet.
    share : ndarray of int, shape (P,)
        Column indices, as are `count` and `start`, shape (D', H); `stock`, shape (G,), -1 where not committed;
        and `node`, by pool, of shape (patterns, H), empty where GPUs are counted by the replica.
    rows : dict of str to ndarray of int
        Row indices of each kind, -1 where there is none: ``demand`` (B, H), ``capacity`` and ``start`` (D', H),
        ``power`` (H,), ``quality`` (K,); for each pool g that has them ``fit g`` (rows, H), ``inventory g`` (H,) and
        ``bought g`` (1,); for each limited measure ``at_most MEASURE`` (1,).
    """

    problem: FleetProblem
    kept: Indices
    pair: tuple[Indices, Indices, Indices]
    loads: Floats
    matrix: MatrixProgram
    share: Indices
    count: Indices
    start: Indices
    stock: Indices
    node: tuple[Indices, ...]
    rows: dict[str, Indices]

    def with_matrix(self, matrix: MatrixProgram) -> FleetProgram:
        """Return the program with rows or columns appended."""
        return replace(self, matrix=matrix)

    def charges(self, charged: Rates) -> Floats:
        """Return what each column adds at some rates. Shape (C,)."""
        problem = self.problem
        cost = np.zeros(len(self.matrix.cost))
        bucket, option, period = self.pair
        for h in range(len(problem.hours)):
            here = period == h
            cost[self.share[here]] = per_share(problem, charged, h)[bucket[here], self.kept[option[here]]]
        cost[self.count] = per_replica(problem, charged)[self.kept]
        cost[self.start] = per_start(problem, charged)[self.kept]
        held = per_gpu_held(problem, charged) * problem.node_gpus[:, None]
        for g, node in enumerate(self.node):
            if self.stock[g] >= 0:
                cost[self.stock[g]] = held[g].sum()
            elif node.size:
                cost[node] = held[g]
        return cost

    def pair_quality(self, buckets: NDArray[np.bool_], less: Floats | float) -> Floats:
        """Return what one unit of each share adds to the mean quality of some buckets, `less` a level. Shape (P,)."""
        bucket, option, period = self.pair
        requests = self.problem.requests * buckets[:, None]
        weight = requests / max(requests.sum(), 1e-300)
        return np.asarray(weight[bucket, period] * (self.problem.quality[bucket, self.kept[option]] - less))

    def measure(self, name: str) -> tuple[Indices, Floats]:
        """Return columns and coefficients of a measure over the horizon, the quality with its sign turned."""
        if name == "quality":
            every = np.ones(len(self.problem.bucket_class), bool)
            return self.share, -self.pair_quality(every, 0.0)
        cost = self.charges(rates(self.problem, name))
        columns = np.flatnonzero(cost)
        return columns, cost[columns]

    def minimising(self, name: str) -> FleetProgram:
        """Return the program that minimises a measure, or maximises quality."""
        return self.with_matrix(self.matrix.with_cost(*self.measure(name)))

    def keeping(self, most: float) -> FleetProgram:
        """Return the program whose objective, as it is now, is at most `most`."""
        columns = np.flatnonzero(self.matrix.cost)
        size = max(abs(most), 1.0)
        return self.with_matrix(self.matrix.with_row(columns, self.matrix.cost[columns] / size, upper=most / size))

    def counts(self, values: Floats) -> Indices:
        """Return the replicas of all D options in a solution. Shape (D, H)."""
        counts = np.zeros((len(self.problem.options), len(self.problem.hours)), np.int64)
        counts[self.kept] = np.round(values[self.count]).astype(np.int64)
        return counts

    def shares(self, values: Floats) -> Floats:
        """Return the fraction of each bucket on each option in a solution. Shape (B, D, H)."""
        bucket, option, period = self.pair
        shares = np.zeros((len(self.problem.rate_qps), len(self.problem.options), len(self.problem.hours)))
        shares[bucket, self.kept[option], period] = np.maximum(values[self.share], 0.0)
        total = shares.sum(1, keepdims=True)
        return np.asarray(np.divide(shares, total, out=shares, where=total > 0))

    def held(self, values: Floats) -> Indices:
        """Return the GPUs that a solution has to pay for: no idle nodes, were they free. Shape (G, H)."""
        problem, counts = self.problem, self.counts(values)
        held = np.zeros((len(problem.pools), len(problem.hours)), np.int64)
        for g, node in enumerate(self.node):
            here = problem.pool == g
            size = int(problem.node_gpus[g])
            units = np.array([nodes_needed(problem.gpus[here], now, size) for now in counts[here].T])
            if node.size:
                units = np.minimum(units, np.round(values[node]).astype(np.int64).sum(0))
            held[g] = (units.max() if problem.committed[g] else units) * size
        return held
