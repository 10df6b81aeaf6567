from __future__ import annotations

import numpy as np
import pytest

from qplan.core.errors import StoreError
from qplan.models.steptimes import StepTimes

BATCHES, CONTEXTS = (1.0, 2.0, 4.0), (100.0, 200.0, 400.0)


def affine(batch: float, context: float) -> float:
    return 5.0 + 2.0 * batch + 0.01 * batch * context


def grid(missing: set[tuple[float, float]] = frozenset()) -> StepTimes:  # type: ignore[assignment]
    points = [(b, c, affine(b, c)) for b in BATCHES for c in CONTEXTS if (b, c) not in missing]
    batch, context, times = (np.array(column) for column in zip(*points, strict=True))
    zeros = np.zeros(len(points), dtype=np.intp)
    prefill = (np.zeros(2, dtype=np.intp), np.array([10.0, 30.0]), np.array([1.0, 3.0]))
    return StepTimes.from_points(1, prefill, (zeros, batch, context, times), ["x"])


def test_points_of_the_grid_are_returned_as_they_are() -> None:
    np.testing.assert_allclose(grid().decode_by_batch(200.0)[0], [affine(b, 200) for b in BATCHES])
    assert grid().prefill(np.array([10.0, 30.0]))[0].tolist() == [1.0, 3.0]


def test_between_and_beyond_the_points_the_line_goes_on() -> None:
    np.testing.assert_allclose(grid().decode_by_batch(300.0)[0], [affine(b, 300) for b in BATCHES])
    np.testing.assert_allclose(grid().decode_by_batch(900.0)[0], [affine(b, 900) for b in BATCHES])
    assert grid().prefill(np.array([20.0, 50.0]))[0].tolist() == [2.0, 5.0]


def test_below_the_smallest_point_an_iteration_gets_no_cheaper() -> None:
    assert grid().prefill(np.array([1.0]))[0, 0] == 1.0


def test_points_that_did_not_fit_are_prolonged() -> None:
    whole, holed = grid(), grid({(4.0, 400.0)})
    assert not np.isnan(holed.decode_s).any()
    np.testing.assert_allclose(holed.decode_s, whole.decode_s)


def test_a_deployment_without_decode_rows_is_named() -> None:
    prefill = (np.array([0, 1]), np.array([10.0, 10.0]), np.array([1.0, 1.0]))
    decode = (np.array([0]), np.array([1.0]), np.array([100.0]), np.array([1.0]))
    with pytest.raises(StoreError, match="the profile of b has no decode row"):
        StepTimes.from_points(2, prefill, decode, ["a", "b"])
