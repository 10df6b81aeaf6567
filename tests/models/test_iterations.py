from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.iterations import IterationGrid


def grid(**changes: Any) -> IterationGrid:
    prefill, batches, contexts = np.array([0.0, 100, 400]), np.array([0.0, 1, 8]), np.array([16.0, 1024])
    time = 1e-3 * np.multiply.outer(prefill, np.ones((3, 2))) + batches[:, None] * (1 + 0.01 * contexts)
    fields: dict[str, Any] = {"prefill_tokens": prefill, "batches": batches, "context_tokens": contexts}
    return IterationGrid(**{**fields, "time_s": time, **changes})


def test_times_are_exact_where_they_are_linear_in_each_variable_also_beyond_the_grid() -> None:
    asked = (np.array([0.0, 50, 900]), np.array([0.0, 4, 20]), np.array([0.0, 4 * 600, 20 * 3000]))
    expected = 1e-3 * asked[0] + asked[1] + 0.01 * asked[2]
    np.testing.assert_allclose(grid().at(*asked), expected, rtol=1e-12)


def test_a_context_below_the_grid_takes_the_time_of_its_first_point() -> None:
    short = grid().at(np.zeros(1), np.ones(1), np.ones(1))
    np.testing.assert_allclose(short, 1.16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batches": np.array([1.0, 2, 8])}, "first"),
        ({"context_tokens": np.array([16.0, 16.0])}, "rising"),
        ({"time_s": np.zeros((2, 2, 2))}, "shape"),
        ({"time_s": np.linspace(1, 0, 18).reshape(3, 3, 2)}, "never fall"),
    ],
)
def test_bad_grids_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        grid(**changes)
