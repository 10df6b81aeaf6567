from __future__ import annotations

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration import Parts


def test_a_saturated_row_is_infinite_and_not_nan() -> None:
    parts = Parts(("a", "b"), np.array([[1.0, 2.0], [np.inf, np.inf]]), np.array([2.0, 0.0]), np.ones(2))
    assert parts.total.tolist() == [2.0, np.inf]


def test_a_prediction_of_which_nothing_is_known_is_one_part() -> None:
    assert Parts.whole(np.array([1.0, 3.0])).total.tolist() == [1.0, 3.0]


def test_rows_are_taken_in_order() -> None:
    assert Parts.whole(np.array([1.0, 2.0, 3.0])).take(np.array([2, 0])).total.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("seconds", "own", "deviation", "message"),
    [
        ([[1.0]], [1.0, 1.0], [1.0, 1.0], "one of each per name"),
        ([[1.0, -1.0]], [1.0, 1.0], [1.0, 1.0], "0 or more"),
        ([[1.0, 1.0]], [1.0, -1.0], [1.0, 1.0], "0 or more"),
        ([[1.0, 1.0]], [1.0, 1.0], [1.0, 0.0], "positive"),
    ],
)
def test_what_cannot_be_parts_is_refused(
    seconds: list[list[float]], own: list[float], deviation: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Parts(("a", "b"), np.array(seconds), np.array(own), np.array(deviation))
