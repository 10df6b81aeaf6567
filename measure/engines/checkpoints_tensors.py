"""The safetensors file format, read and written with NumPy alone.

Format: https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header with the dtype, the shape
and the byte range of every tensor, then the bytes. NumPy has no bfloat16: see :class:`Tensor`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "|i1"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its dtype as the format names it, shape, and place behind the header in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def stored_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; `data` of dtype ``BF16`` holds the upper halves of 32-bit floats as ``uint16``."""

    name: str
    dtype: str
    data: Array


def read_header(path: Path) -> dict[str, Entry]:
    """Read names, dtypes and places of the tensors of a file, without their data.

    Raises
    ------
    InputError
        The file is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            name: Entry(entry["dtype"], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot read this as safetensors ({error}); expected weights of a checkpoint"
        ) from None


def read_tensors(path: Path) -> Iterator[Tensor]:
    """Yield the tensors of a file, one in memory at a time.

    Raises
    ------
    InputError
        The file is not a safetensors file, or holds a dtype other than 16- or 32-bit floats and integers.
    """
    import numpy as np

    for name, entry in read_header(path).items():
        if entry.dtype not in _NUMPY:
            raise InputError(f"{path}: tensor '{name}' is {entry.dtype}; expected one of {', '.join(_NUMPY)}")
        data = np.fromfile(path, dtype=_NUMPY[entry.dtype], count=prod(entry.shape), offset=entry.start)
        yield Tensor(name, entry.dtype, data.reshape(entry.shape))


def write_tensors(path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Iterable[Tensor]) -> None:
    """Write a file whose `layout` (name to dtype and shape) is known beforehand, so that tensors come one by one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in layout.items():
        size = DTYPE_BYTES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start on a multiple of eight bytes, as the format asks
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            start, end = header[tensor.name]["data_offsets"]
            assert tensor.data.nbytes == end - start, tensor.name
            file.seek(8 + len(text) + start)
            file.write(tensor.data.tobytes())


def to_bfloat16(values: Array) -> NDArray[np.uint16]:
    """Round 32-bit floats to bfloat16, to nearest and ties to even; NaN is not expected."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def stored(values: NDArray[np.float32], dtype: str) -> Array:
    """Round 32-bit floats to `dtype`: ``BF16``, ``F16`` or ``F32``."""
    return to_bfloat16(values) if dtype == "BF16" else values.astype(_NUMPY[dtype])


def to_float32(tensor: Tensor) -> NDArray[np.float32]:
    """Return a floating-point tensor as 32-bit floats."""
    import numpy as np

    if tensor.dtype == "BF16":
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return tensor.data.astype(np.float32)
