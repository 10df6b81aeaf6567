"""How replicas fit into whole nodes: which contents of a node there are.

Replicas of 1, 2, 4, 8 GPUs fill nodes of 8 without loss: put in by falling size, the room left in the open node is
always a multiple of the size at hand, so a node closes only when it is full. Wherever the sizes divide one another
and the node, M nodes therefore hold exactly the sets of replicas that take at most M times a node's GPUs: one row,
``sum gpus n <= node_gpus M``, says it all. For other sizes (3 and 2 in 8) the nodes are counted by their contents, the
patterns of the cutting-stock problem (Gilmore and Gomory, Operations Research 9(6), 1961): one row for each
size, ``sum of that size's replicas <= sum over patterns of content x nodes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """What a pool's nodes can hold.

    Attributes
    ----------
    row : ndarray of int, shape (D',)
        For each option of the pool, the row that counts its replicas.
    weight : ndarray of int, shape (D',)
        What one replica takes of its row.
    contents : ndarray of int, shape (patterns, rows)
        What one node of each pattern gives to each row.
    """

    row: NDArray[np.int64]
    weight: NDArray[np.int64]
    contents: NDArray[np.int64]


def packing(gpus: NDArray[np.int64], node_gpus: int) -> Packing:
    """Return how replicas of `gpus` GPUs each, at most `node_gpus`, share nodes.

    Parameters
    ----------
    gpus : ndarray of int, shape (D',)
    """
    sizes = np.unique(gpus)
    chain = [*sizes.tolist(), node_gpus]
    if node_gpus == 1 or all(large % small == 0 for small, large in pairwise(chain)):
        return Packing(np.zeros(len(gpus), np.int64), gpus, np.array([[node_gpus]]))
    patterns = np.array(_maximal(sizes.tolist()[::-1], node_gpus))[:, ::-1]
    return Packing(np.searchsorted(sizes, gpus), np.ones(len(gpus), np.int64), patterns)


def _maximal(sizes: list[int], room: int) -> list[list[int]]:
    """Return the contents of a node, by falling size, to which nothing can be added."""
    first, *others = sizes
    if not others:
        return [[room // first]]
    found = []
    for count in range(room // first, -1, -1):
        for rest in _maximal(others, room - count * first):
            left = room - count * first - int(np.dot(rest, others))
            if left < first:
                found.append([count, *rest])
    return found


def nodes_needed(gpus: NDArray[np.int64], counts: NDArray[np.int64], node_gpus: int) -> int:
    """Return the nodes that first-fit decreasing takes for `counts` replicas of `gpus` GPUs each.

    The fewest possible where the sizes divide one another and the node; else at most 2/9 more and one (Dosa, ESCAPE
    2007: first-fit decreasing packs within 11/9 of the optimum plus 6/9).
    """
    if node_gpus == 1:
        return int(gpus @ counts)
    room: list[int] = []
    for size in np.repeat(gpus, counts)[np.argsort(-np.repeat(gpus, counts), kind="stable")].tolist():
        place = next((i for i, left in enumerate(room) if left >= size), None)
        if place is None:
            room.append(node_gpus - size)
        else:
            room[place] -= size
    return len(room)
