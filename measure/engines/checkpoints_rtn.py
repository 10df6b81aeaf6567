"""Round-to-nearest quantization of a 16-bit checkpoint into the ``compressed-tensors`` format.

Scales and rounding are those of the library compressed-tensors 0.17 (symmetric: the range [-2^(b-1), 2^(b-1) - 1] is
centred, so a scale is the largest magnitude over 2^(b-1) - 1/2). Linear layers are quantized; embeddings, norms and the
output head stay at 16 bits. No calibration data is seen: this is the floor of what the format can keep, not its best.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.measure.engines.checkpoints_tensors import (
    Entry,
    Tensor,
    read_header,
    read_tensors,
    stored,
    to_float32,
    write_tensors,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GROUPS = (128, 64, 32)
"""Weights that share a scale, the widest first that divides every row: those that Marlin has kernels for."""

_KEPT = ("lm_head", "embed_tokens", "embedding", "norm")
_PACKED_BITS = 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """What :func:`quantize` makes.

    Attributes
    ----------
    bits
        Bits of a weight; below 8, weights are packed into 32-bit words.
    activations
        Whether activations are quantized to 8 bits too, per token while serving.
    """

    bits: int
    activations: bool

    @property
    def packed(self) -> bool:
        """Whether the format is ``pack-quantized``; else ``int-quantized``."""
        return not self.activations


RECIPES = {"W8A8-INT": Recipe(8, True), "W8A16": Recipe(8, False), "W4A16": Recipe(4, False)}
"""Schemes that can be made, by their canonical name."""


def quantize(source: Path, folder: Path, scheme: str) -> None:
    """Write the checkpoint in `source`, quantized to `scheme`, into the existing `folder`.

    Raises
    ------
    InputError
        The checkpoint has no safetensors files or configuration, or its rows do not divide into packed words.
    """
    recipe = RECIPES[scheme]
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise InputError(f"{source}: no *.safetensors files; expected a Hugging Face checkpoint to quantize")
    headers = {file: read_header(file) for file in files}
    columns = {
        entry.shape[1]
        for header in headers.values()
        for name, entry in header.items()
        if _is_quantized(name, entry.shape)
    }
    group = group_size(columns) if recipe.packed and recipe.bits < 8 else None
    if recipe.packed and any(width % (_PACKED_BITS // recipe.bits) for width in columns):
        raise InputError(f"{source}: rows of {min(columns)} weights do not pack into 32-bit words of {scheme}")
    for file in files:
        layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, entry in headers[file].items():
            if _is_quantized(name, entry.shape):
                layout |= _quantized_layout(name, entry, recipe, group)
            else:
                layout[name] = (entry.dtype, entry.shape)
        write_tensors(folder / file.name, layout, _quantized_tensors(file, recipe, group))
    for file in source.iterdir():
        if file.suffix in (".json", ".model", ".txt", ".jinja") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    if len(files) > 1:
        _write_index(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _quantization_config(recipe, group)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def group_size(columns: set[int]) -> int | None:
    """Return the widest group that divides every row length; ``None``, one scale a row, where none does."""
    return next((group for group in _GROUPS if all(width % group == 0 for width in columns)), None)


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in _KEPT)


def _quantized_layout(
    name: str, entry: Entry, recipe: Recipe, group: int | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    rows, columns = entry.shape
    scales = (entry.dtype, (rows, columns // group if group else 1))
    if not recipe.packed:
        return {name: ("I8", entry.shape), f"{name}_scale": scales}
    return {
        f"{name}_packed": ("I32", (rows, columns * recipe.bits // _PACKED_BITS)),
        f"{name}_scale": scales,
        f"{name}_shape": ("I64", (2,)),
    }


def _quantized_tensors(file: Path, recipe: Recipe, group: int | None) -> Iterator[Tensor]:
    import numpy as np

    for tensor in read_tensors(file):
        if not _is_quantized(tensor.name, tensor.data.shape):
            yield tensor
            continue
        values, scales = round_to_nearest(to_float32(tensor), recipe.bits, group, tensor.dtype)
        yield replace(scales, name=f"{tensor.name}_scale")
        if recipe.packed:
            yield Tensor(f"{tensor.name}_packed", "I32", pack(values, recipe.bits))
            yield Tensor(f"{tensor.name}_shape", "I64", np.asarray(values.shape, dtype=np.int64))
        else:
            yield Tensor(tensor.name, "I8", values)


def round_to_nearest(
    weights: NDArray[np.float32], bits: int, group: int | None, dtype: str
) -> tuple[NDArray[np.int8], Tensor]:
    """Quantize `weights` of shape (rows, columns); returns integers of that shape and scales (rows, groups).

    The scales are rounded to `dtype`, in which they are stored, before the weights are divided by them.
    """
    import numpy as np

    rows, columns = weights.shape
    grouped = weights.reshape(rows, -1, group or columns)
    half = 2 ** (bits - 1)
    largest = np.maximum(np.abs(grouped).max(axis=2), np.finfo(np.float32).tiny * half)
    scales = Tensor("", dtype, stored(largest / np.float32(half - 0.5), dtype))
    scaled = np.rint(grouped / to_float32(scales)[:, :, None])
    return np.clip(scaled, -half, half - 1).astype(np.int8).reshape(rows, columns), scales


def pack(values: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Pack signed integers along rows into 32-bit words, the first in the lowest bits, each offset to be unsigned."""
    import numpy as np

    unsigned = (values.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint32)
    words = unsigned.reshape(values.shape[0], -1, _PACKED_BITS // bits)
    shifts = np.arange(_PACKED_BITS // bits, dtype=np.uint32) * np.uint32(bits)
    packed: NDArray[np.uint32] = np.bitwise_or.reduce(words << shifts, axis=2)
    return packed.view(np.int32)


def _quantization_config(recipe: Recipe, group: int | None) -> dict[str, Any]:
    def integers(bits: int, strategy: str, size: int | None = None, *, dynamic: bool = False) -> dict[str, Any]:
        return {
            "num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": size,
            "dynamic": dynamic, "actorder": None, "block_structure": None, "observer": None if dynamic else "minmax",
            "observer_kwargs": {},
        }  # fmt: skip

    scheme = {
        "targets": ["Linear"],
        "weights": integers(recipe.bits, "group" if group else "channel", group),
        "input_activations": integers(8, "token", dynamic=True) if recipe.activations else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if recipe.packed else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _write_index(folder: Path) -> None:
    headers = {file.name: read_header(file) for file in sorted(folder.glob("*.safetensors"))}
    size = sum(entry.stored_bytes for header in headers.values() for entry in header.values())
    places = {name: file for file, header in headers.items() for name in header}
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
