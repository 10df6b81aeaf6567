"""GGUF files of random weights, written as fast as the disk takes them: blocks are drawn, not quantized.

A block of a quantized type is random bytes with scales that make its weights centred and of
:data:`~qplan.measure.engines.random_model.DEVIATION`. A pool of blocks is drawn once a type, and every tensor is cut
from it at another place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.model import Model
from qplan.measure.engines.contract import Prepared
from qplan.measure.engines.gguf_file import GgufFile, TensorInfo, encode_metadata, write_gguf
from qplan.measure.engines.gguf_weights import bits_per_weight, stored_bytes, tensor_type
from qplan.measure.engines.random_model import DEVIATION, RANDOM, metadata, random_name, random_recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_POOL_WEIGHTS = 2**25
_CUT = 256  # weights that are a whole number of blocks of any type
_STRIDE = 7919 * _CUT  # between the places where two tensors are cut: a prime number of blocks

# Type: where in a block its 16-bit scales stand, and what they are for weights of deviation 1. Layouts and decoding:
# ggml/src/ggml-common.h and ggml-quants.c; second entries are the minima that centre the weights.
_SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q8_0": ((0, 1 / 73.9),),
    "Q6_K": ((208, 1 / 1365.0),),
    "Q5_K": ((0, 1 / 532.0), (2, 15.5 / 532.0)),
    "Q5_1": ((0, 1 / 9.23), (2, -15.5 / 9.23)),
    "Q5_0": ((0, 1 / 9.23),),
    "Q4_K": ((0, 1 / 258.0), (2, 7.5 / 258.0)),
    "Q4_1": ((0, 1 / 4.61), (2, -7.5 / 4.61)),
    "Q4_0": ((0, 1 / 4.64),),
    "Q3_K": ((108, 1 / 42.6),),
    "Q2_K": ((80, 1 / 13.9), (82, 1.5 / 13.9)),
}


def make_random_gguf(shape: Model, type_name: str, folder: Path) -> Prepared:
    """Write, or find below `folder`, a file of random weights of type `type_name`.

    Where the disk has no room for it, other files of random weights there are removed: they are made again in seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{random_name(shape, type_name)}.gguf"
    with (folder / f".{RANDOM}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            infos = _tensors(shape)
            types = [_type(info, type_name, shape.tied_embeddings) for info in infos]
            _make_room(folder, sum(stored_bytes(i.elements, name) for i, name in zip(infos, types, strict=True)))
            part = target.with_suffix(".part")
            _write(shape, infos, types, type_name, part)
            os.replace(part, target)
    return Prepared(str(target), bits_per_weight(target), random_recipe(shape, type_name), meaningful=False)


def draw(type_name: str, elements: int, seed: int) -> NDArray[np.uint8]:
    """Draw the bytes of `elements` random weights of a type, a multiple of its block."""
    import numpy as np

    random = np.random.default_rng(seed)
    if type_name == "F32":
        return np.ones(elements, np.float32).view(np.uint8)  # norms
    if type_name == "F16":
        values = random.standard_normal(elements, np.float32) * np.float32(DEVIATION)
        return values.astype(np.float16).view(np.uint8)
    block_bytes = stored_bytes(_block(type_name), type_name)
    blocks = random.integers(0, 256, (elements // _block(type_name), block_bytes), np.uint8)
    for place, scale in _SCALES[type_name]:
        blocks[:, place : place + 2] = np.array([scale * DEVIATION], np.float16).view(np.uint8)
    return blocks.reshape(-1)


def _tensors(shape: Model) -> list[TensorInfo]:
    """Return the tensors of a Llama, types left open."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden_size, shape.intermediate_size
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, queries),
        "attn_k": (hidden, keys),
        "attn_v": (hidden, keys),
        "attn_output": (queries, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (hidden, wide),
        "ffn_up": (hidden, wide),
        "ffn_down": (wide, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (hidden, shape.vocabulary), "output_norm": (hidden,)}
    if not shape.tied_embeddings:
        shapes["output"] = (hidden, shape.vocabulary)
    for number in range(shape.layers):
        shapes |= {f"blk.{number}.{name}": size for name, size in layer.items()}
    return [TensorInfo(f"{name}.weight", size, 0, 0) for name, size in shapes.items()]


def _type(info: TensorInfo, type_name: str, tied: bool) -> str:
    return tensor_type(info, "F32" if len(info.shape) == 1 else "F16", type_name, tied)


def _write(shape: Model, infos: list[TensorInfo], types: list[str], type_name: str, path: Path) -> None:
    import gguf

    files = gguf.LlamaFileType.__members__
    file_type = files.get(f"MOSTLY_{type_name}", files.get(f"MOSTLY_{type_name}_S"))
    assert file_type is not None
    header = GgufFile(path, {}, encode_metadata(metadata(shape, int(file_type))), {}, tuple(infos))
    write_gguf(
        path,
        header,
        [int(gguf.GGMLQuantizationType[name]) for name in types],
        [stored_bytes(info.elements, name) for info, name in zip(infos, types, strict=True)],
        _contents(infos, types),
    )


def _contents(infos: list[TensorInfo], types: list[str]) -> Iterator[memoryview]:
    """Yield the bytes of every tensor: a piece of its type's pool, which is repeated for as long as the largest."""
    import numpy as np

    drawn = min(_POOL_WEIGHTS, _CUT * (1 + sum(info.elements for info in infos) // _CUT))
    pools = {}
    for name in dict.fromkeys(types):
        largest = max(info.elements for info, other in zip(infos, types, strict=True) if other == name)
        pool = draw(name, drawn, seed=0)
        pools[name] = np.resize(pool, len(pool) + stored_bytes(largest, name))
    for number, info, name in zip(count(), infos, types, strict=False):
        start = stored_bytes(number * _STRIDE % drawn, name)
        yield pools[name][start : start + stored_bytes(info.elements, name)].data


def _block(type_name: str) -> int:
    """Return how many weights a block of a type holds."""
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]][0])


def _make_room(folder: Path, needed_bytes: int) -> None:
    """Remove files of random weights, the oldest first, until there is room for another."""
    others = sorted(folder.glob(f"{RANDOM}-*.gguf"), key=lambda file: file.stat().st_mtime)
    while others and shutil.disk_usage(folder).free < needed_bytes * 1.02:
        others.pop(0).unlink()
