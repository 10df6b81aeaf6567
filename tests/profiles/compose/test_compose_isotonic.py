"""Times that rise, at the least change."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qplan.profiles.compose.isotonic import repair

grids = arrays(float, (2, 4, 5), elements=st.floats(1e-4, 10))


@given(grids)
def test_never_falls_and_keeps_what_rises(times: np.ndarray) -> None:
    risen, report = repair(times)
    assert (np.diff(risen, axis=1) >= -1e-15).all()
    assert (np.diff(risen, axis=2) >= -1e-15).all()
    again, unchanged = repair(np.maximum.accumulate(np.maximum.accumulate(times, axis=1), axis=2))
    assert unchanged.changed == 0
    assert np.array_equal(again, np.maximum.accumulate(np.maximum.accumulate(times, axis=1), axis=2))
    assert report.points == 40


@given(grids)
def test_no_rising_times_are_closer(times: np.ndarray) -> None:
    """Two points that fall by a ratio force one of them to change by its root: none can do with less."""
    risen, _ = repair(times)
    worst = np.abs(np.log(risen / times)).max()
    needed = 0.0
    for i in range(4):
        for j in range(5):
            later = times[:, i:, j:].min(axis=(1, 2))
            needed = max(needed, float((np.log(times[:, i, j] / later) / 2).max()))
    assert abs(worst - needed) < 1e-9


def test_counts_what_it_changed() -> None:
    risen, report = repair(np.array([[[1.0, 4.0, 1.0, 5.0]]]))
    assert risen.tolist() == [[[1.0, 2.0, 2.0, 5.0]]]
    assert (report.points, report.changed, report.changed_over_5_percent, report.largest_change) == (4, 2, 2, 1.0)


def test_leaves_what_is_not_there() -> None:
    times = np.array([[[1.0, 2.0], [3.0, np.nan]]])
    risen, report = repair(times)
    assert np.array_equal(risen, times, equal_nan=True)
    assert report.points == 3
