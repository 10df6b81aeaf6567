from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qplan.solvers.fleet.nodes import nodes_needed, packing


def test_sizes_that_divide_one_another_need_one_row() -> None:
    pack = packing(np.array([4, 1, 2, 8, 1]), 8)
    assert pack.row.tolist() == [0] * 5
    assert pack.weight.tolist() == [4, 1, 2, 8, 1]
    assert pack.contents.tolist() == [[8]]


def test_other_sizes_are_counted_by_what_a_node_holds() -> None:
    pack = packing(np.array([3, 2, 3]), 8)
    assert pack.row.tolist() == [1, 0, 1]
    assert pack.weight.tolist() == [1, 1, 1]
    assert sorted(map(tuple, pack.contents.tolist())) == [(1, 2), (2, 1), (4, 0)]


@pytest.mark.parametrize(("sizes", "node"), [([1, 2], 4), ([2, 3], 8), ([1, 3, 4], 4), ([3], 8), ([2, 3, 5], 7)])
def test_the_rows_admit_what_fits_and_nothing_else(sizes: list[int], node: int) -> None:
    """Against every way to put replicas into two nodes."""
    pack = packing(np.array(sizes), node)
    one_node = [c for c in product(*(range(node // s + 1) for s in sizes)) if np.dot(c, sizes) <= node]
    fits = {tuple(int(n) for n in np.sum(nodes, axis=0)) for nodes in product(one_node, repeat=2)}
    most = [2 * (node // s) + 1 for s in sizes]
    ways = [
        np.sum(contents, axis=0) for contents in product(pack.contents, repeat=2)
    ]  # what two nodes give to each row
    for counts in product(*(range(n + 1) for n in most)):
        taken = np.bincount(pack.row, weights=pack.weight * np.array(counts), minlength=pack.contents.shape[1])
        assert any((taken <= given).all() for given in ways) == (counts in fits), counts


def test_first_fit_decreasing() -> None:
    assert nodes_needed(np.array([1, 2, 4, 8]), np.array([2, 1, 3, 1]), 8) == 3
    assert nodes_needed(np.array([3, 2]), np.array([2, 1]), 8) == 1
    assert nodes_needed(np.array([3, 2]), np.array([0, 0]), 8) == 0
    assert nodes_needed(np.array([3, 2]), np.array([2, 1]), 1) == 8
