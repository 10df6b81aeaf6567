"""Pareto fronts of losses, the volume they dominate, and the boxes they leave: all by slabs along the last axis.

The volume dominated by points up to a reference, and the part of the space that no point dominates, are both sums over
slabs between neighbouring points of the last axis, in each of which the question has one axis less (Lacour, Klamroth,
Fonseca: A box decomposition algorithm to compute the hypervolume indicator, Computers & Operations Research 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def nondominated(points: Floats) -> NDArray[np.bool_]:
    """Return which of the points, (N, M), no other point dominates, (N,); equal points do not dominate each other."""
    kept = np.ones(len(points), dtype=bool)
    for i in np.lexsort(points.T[::-1]):  # by the first axis: a point is dominated by earlier ones alone
        if kept[i]:
            worse = (points >= points[i]).all(axis=1) & (points > points[i]).any(axis=1)
            kept[worse] = False
    return kept


def front(points: Floats, reference: Floats) -> Floats:
    """Return the distinct points, (F, M), that are on the front and better than `reference` on every axis."""
    inside = np.unique(points[(points < reference).all(axis=1)], axis=0)
    return inside[nondominated(inside)]


def hypervolume(points: Floats, reference: Floats) -> float:
    """Return the volume of what the points, (N, M), dominate, up to `reference`, (M,)."""
    return _volume(front(points, reference), reference)


def _volume(points: Floats, reference: Floats) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.diff(np.append(points[:, -1], reference[-1]))
    if points.shape[1] == 2:
        return float(heights @ (reference[0] - np.minimum.accumulate(points[:, 0])))
    volume = 0.0
    for k in np.flatnonzero(heights > 0):
        below = points[: k + 1, :-1]
        if below.shape[1] > 2:  # in the plane the best so far is all that counts
            below = below[nondominated(below)]
        volume += heights[k] * _volume(below, reference[:-1])
    return volume


def free_boxes(points: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Cut what is better than `reference`, (M,), and dominated by no point, (N, M), into disjoint boxes.

    Returns
    -------
    lower, upper
        (K, M); `lower` is ``-inf`` where a box has no end.
    """
    return _free(front(points, reference), reference)


def _free(points: Floats, reference: Floats) -> tuple[Floats, Floats]:
    axes = len(reference)
    if not len(points):
        return np.full((1, axes), -np.inf), reference[None, :].copy()
    if axes == 1:
        return np.full((1, 1), -np.inf), points.min(axis=0, keepdims=True)
    points = points[np.argsort(points[:, -1], kind="stable")]
    edges = np.concatenate([[-np.inf], points[:, -1], [reference[-1]]])
    if axes == 2:
        most = np.concatenate([[reference[0]], np.minimum.accumulate(points[:, 0])])
        lower = np.column_stack([np.full(len(most), -np.inf), edges[:-1]])
        upper = np.column_stack([most, edges[1:]])
    else:
        parts = []
        for k in np.flatnonzero(edges[1:] > edges[:-1]):
            below = points[:k, :-1]
            low, high = _free(below[nondominated(below)] if k else below, reference[:-1])
            parts.append((np.insert(low, axes - 1, edges[k], axis=1), np.insert(high, axes - 1, edges[k + 1], axis=1)))
        lower, upper = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    filled = (upper > lower).all(axis=1)
    return lower[filled], upper[filled]
