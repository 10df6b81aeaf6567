"""Numbers out of Arrow arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.profiles.arrays import numbers


@given(st.lists(st.one_of(st.none(), st.integers(-(2**50), 2**50))), st.integers(0, 20), st.integers(0, 20))
def test_numbers_are_those_of_pyarrow_in_any_slice(values: list[int | None], start: int, length: int) -> None:
    for kind in (pa.int64(), pa.float64()):
        array = pa.array(values, kind).slice(start, length)
        np.testing.assert_array_equal(numbers(array), array.to_numpy(zero_copy_only=False))


def test_a_null_among_numbers_of_few_bits_is_not_a_number() -> None:
    found = numbers(pa.array([0.5, None, 2.0], pa.float32()))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([0.5, np.nan, 2.0], nan_ok=True)
