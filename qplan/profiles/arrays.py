"""Numbers out of Arrow arrays: pyarrow's own conversion loads pandas if it is installed, longer than a plan takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa


def numbers(array: pa.Array[Any]) -> npt.NDArray[Any]:
    """Return the values of an array of whole or floating numbers, (N,); NaN where it has none."""
    kind: np.dtype[Any] = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, kind)
    buffers: list[Any] = array.buffers()
    valid, data = buffers
    there = slice(array.offset, array.offset + len(array))
    values: npt.NDArray[Any] = np.frombuffer(data, kind)[there]
    if not array.null_count:
        return values
    given = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[there]
    return np.where(given, values, np.nan)
