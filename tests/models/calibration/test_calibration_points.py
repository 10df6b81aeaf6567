from __future__ import annotations

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration import choose

GRID = np.array([[x, y] for x in range(5) for y in range(5)], dtype=float)


def test_it_starts_in_the_middle_and_goes_to_the_corners() -> None:
    chosen = GRID[choose(GRID, 5)].tolist()
    assert chosen[0] == [2, 2]
    assert sorted(chosen[1:]) == [[0, 0], [0, 4], [4, 0], [4, 4]]


def test_the_first_points_of_a_longer_design_are_the_shorter_one() -> None:
    assert choose(GRID, 10)[:4].tolist() == choose(GRID, 4).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_another_design_that_is_spread_out_too(seed: int) -> None:
    chosen = GRID[choose(GRID, 6, seed)]
    assert len({tuple(point) for point in chosen}) == 6
    distances = np.abs(chosen[:, None] - chosen[None]).max(axis=2)
    assert distances[~np.eye(6, dtype=bool)].min() >= 2
    assert choose(GRID, 6, seed).tolist() == choose(GRID, 6, seed).tolist()


def test_designs_differ_between_seeds() -> None:
    assert len({tuple(choose(GRID, 6, seed).tolist()) for seed in range(8)}) > 1


def test_an_axis_without_spread_and_candidates_that_coincide_do_no_harm() -> None:
    assert sorted(choose(np.array([[1.0, 7.0], [1.0, 7.0], [2.0, 7.0]]), 3).tolist()) == [0, 1, 2]


def test_no_points_are_a_choice_too_many_are_not() -> None:
    assert not len(choose(GRID, 0))
    with pytest.raises(InputError, match="26 points asked of 25"):
        choose(GRID, 26)
