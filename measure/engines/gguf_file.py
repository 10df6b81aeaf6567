"""The GGUF file format: what is needed to read a file's header in a fraction of a second and to write one like it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` makes an array of every token of
the vocabulary, which takes seconds; here the metadata stay bytes, of which only plain values are decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

from qplan.core.errors import InputError

Value = int | float | bool | str

_MAGIC = b"GGUF"
_ALIGNMENT = 32
_INT32, _STRING, _ARRAY = 5, 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its `shape` with the row length first, ggml's number of its type, and where its bytes start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Header of a GGUF file.

    Attributes
    ----------
    values
        Metadata that are no arrays.
    metadata
        All metadata as the bytes that stand in the file, and how many there are.
    positions
        Where in `metadata` the value of a key of :attr:`values` starts.
    tensors
        In the order of the file; offsets count from the start of the file.
    """

    path: Path
    values: dict[str, Value]
    metadata: tuple[bytes, int]
    positions: dict[str, int]
    tensors: tuple[TensorInfo, ...]

    @property
    def alignment(self) -> int:
        """Bytes that every tensor's start is a multiple of."""
        return int(self.values.get("general.alignment", _ALIGNMENT))

    def with_value(self, key: str, value: int) -> GgufFile:
        """Return the header with another value of a number that it has; unchanged when it has no such key."""
        if key not in self.positions:
            return self
        data, count = bytearray(self.metadata[0]), self.metadata[1]
        struct.pack_into("<I", data, self.positions[key], value)
        return replace(self, values={**self.values, key: value}, metadata=(bytes(data), count))


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises
    ------
    InputError
        It is no GGUF file of version 2 or 3, or it is cut short.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError):
        raise InputError(f"weights: '{path}' is not a whole GGUF file") from None
    except OSError as error:
        raise InputError(f"weights: cannot read '{path}': {error.strerror}") from None


def encode_metadata(values: Mapping[str, Value | Sequence[str] | Sequence[int]]) -> tuple[bytes, int]:
    """Return metadata as :attr:`GgufFile.metadata`: whole numbers as 32 bits, lists as arrays of one kind."""
    data = bytearray()
    for key, value in values.items():
        data += _encoded_text(key)
        if isinstance(value, bool):
            data += struct.pack("<I?", 7, value)
        elif isinstance(value, int):
            data += struct.pack("<II", 4, value)
        elif isinstance(value, float):
            data += struct.pack("<If", 6, value)
        elif isinstance(value, str):
            data += struct.pack("<I", _STRING) + _encoded_text(value)
        elif isinstance(value[0], str):
            data += struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_encoded_text(str(v)) for v in value)
        else:
            data += struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
    return bytes(data), len(values)


def write_gguf(
    path: Path,
    header: GgufFile,
    types: Iterable[int],
    sizes: Iterable[int],
    data: Iterator[bytes | memoryview],
) -> None:
    """Write a file with the metadata and tensors of `header`, whose tensors' types, sizes and bytes are given in order.

    The bytes are asked for one tensor at a time.
    """
    alignment = header.alignment
    ends, offset = [], 0
    infos = bytearray()
    for tensor, kind, size in zip(header.tensors, types, sizes, strict=True):
        name = tensor.name.encode()
        infos += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, kind, offset)
        ends.append(offset + size)
        offset = _aligned(offset + size, alignment)
    with path.open("wb") as file:
        file.write(_MAGIC + struct.pack("<IQQ", 3, len(header.tensors), header.metadata[1]))
        file.write(header.metadata[0])
        file.write(infos)
        start = _aligned(file.tell(), alignment)
        file.write(bytes(start - file.tell()))
        for tensor, end, content in zip(header.tensors, ends, data, strict=True):
            file.write(content)
            if file.tell() != start + end:
                raise ValueError(f"{tensor.name}: {file.tell() - start} bytes written so far; expected {end}")
            file.write(bytes(_aligned(end, alignment) - end))


def _read(path: Path, file: BinaryIO) -> GgufFile:
    magic, version, tensor_count, value_count = struct.unpack("<4sIQQ", file.read(24))
    if magic != _MAGIC or version not in (2, 3):
        raise InputError(f"weights: '{path}' is not a GGUF file of version 2 or 3")
    start = file.tell()
    values: dict[str, Value] = {}
    positions: dict[str, int] = {}
    for _ in range(value_count):
        key = _string(file)
        kind = int(_number(file, "<I"))
        position = file.tell() - start
        if kind == _ARRAY:
            _skip_array(file)
        else:
            values[key] = _string(file) if kind == _STRING else _number(file, _FORMATS[kind])
            positions[key] = position
    length = file.tell() - start
    tensors = [_tensor(file) for _ in range(tensor_count)]
    header = GgufFile(path, values, (b"", value_count), positions, ())
    base = _aligned(file.tell(), header.alignment)
    file.seek(start)
    return replace(
        header,
        metadata=(file.read(length), value_count),
        tensors=tuple(replace(tensor, offset=base + tensor.offset) for tensor in tensors),
    )


def _tensor(file: BinaryIO) -> TensorInfo:
    name = _string(file)
    dimensions = int(_number(file, "<I"))
    *shape, kind, offset = struct.unpack(f"<{dimensions}QIQ", file.read(8 * dimensions + 12))
    return TensorInfo(name, tuple(shape), kind, offset)


def _encoded_text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _skip_array(file: BinaryIO) -> None:
    kind, count = struct.unpack("<IQ", file.read(12))
    if kind == _ARRAY:
        for _ in range(count):
            _skip_array(file)
    elif kind == _STRING:
        for _ in range(count):
            file.seek(int(_number(file, "<Q")), 1)
    else:
        file.seek(count * struct.calcsize(_FORMATS[kind]), 1)


def _string(file: BinaryIO) -> str:
    return file.read(int(_number(file, "<Q"))).decode()


def _number(file: BinaryIO, form: str) -> int | float | bool:
    value: int | float | bool = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
