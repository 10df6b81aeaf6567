"""How far queries lie from the data: what makes an error large, known before the answer is.

Distances are Euclidean over columns that were scaled to the data: by the standard deviation, of the logarithm where a
column is positive throughout, since loads, lengths and sizes act by their ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.steptimes import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class Axes:
    """The scaling of F columns.

    Attributes
    ----------
    log : (F,)
        Which columns are taken by their logarithm.
    centre, spread : (F,)
        Mean and standard deviation, after the logarithm.
    """

    log: Bools
    centre: Floats
    spread: Floats

    @classmethod
    def of(cls, X: Floats) -> Axes:
        """Return the scaling that suits the rows of `X`, (N, F)."""
        log: Bools = np.asarray((X > 0).all(axis=0))
        Z = np.where(log, np.log(np.where(log, X, 1.0)), X)
        spread = Z.std(axis=0)
        return cls(log, Z.mean(axis=0), np.where(spread > 0, spread, 1.0))

    def scaled(self, X: Floats) -> Floats:
        """Return the rows of `X`, (N, F), scaled; what has no logarithm lies as far off as the smallest number."""
        tiny = np.finfo(float).tiny
        Z = np.where(self.log, np.log(np.where(self.log, np.maximum(X, tiny), 1.0)), X)
        scaled: Floats = (Z - self.centre) / self.spread
        return scaled


def inside(near: Floats, own: Ints, Z: Floats, groups: Ints) -> Floats:
    """Return the difficulty, (N, 2), of points in known groups: distance to the nearest own row, and past the range.

    Parameters
    ----------
    near : (M, F), own : (M,)
        Scaled rows of the data and the group of each.
    Z : (N, F), groups : (N,)
        Scaled queries and their groups, each of which has a row in the data.
    """
    difficulty = np.empty((len(Z), 2))
    for group in np.unique(groups):
        rows, asked = near[own == group], groups == group
        queries = Z[asked]
        apart = np.linalg.norm(queries[:, None] - rows[None], axis=-1).min(axis=1)
        difficulty[asked] = np.column_stack([apart, past_range(queries, rows)])
    return difficulty


def outside(near: Floats, Z: Floats) -> Floats:
    """Return the difficulty, (N, 2), of points in new groups: distance to the nearest row, and past the range."""
    from scipy.spatial import KDTree

    apart, _ = KDTree(near).query(Z)
    return np.column_stack([apart, past_range(Z, near)])


def past_range(Z: Floats, rows: Floats) -> Floats:
    """Return how far, (N,), queries lie outside the box that the rows span."""
    beyond = np.maximum(np.maximum(rows.min(axis=0) - Z, Z - rows.max(axis=0)), 0.0)
    past: Floats = np.linalg.norm(beyond, axis=1)
    return past
