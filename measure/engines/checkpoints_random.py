"""Hugging Face checkpoints of random weights in BF16, for engines that quantize when they load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.model import Model
from qplan.measure.engines.checkpoints import make_once, measured_bits
from qplan.measure.engines.checkpoints_gguf import write_description
from qplan.measure.engines.checkpoints_tensors import Tensor, to_bfloat16, write_tensors
from qplan.measure.engines.contract import Prepared
from qplan.measure.engines.random_model import DEVIATION, metadata, random_name, random_recipe

if TYPE_CHECKING:
    Layout = dict[str, tuple[str, tuple[int, ...]]]

_POOL = 2**24
_STRIDE = 7919


def make_random_checkpoint(shape: Model, cache: Path) -> Prepared:
    """Write, or find below `cache`, a checkpoint of random weights."""
    folder = make_once(cache / random_name(shape, "BF16"), lambda folder: _write(shape, folder))
    return Prepared(str(folder), measured_bits(folder), random_recipe(shape, "BF16"), meaningful=False)


def _write(shape: Model, folder: Path) -> None:
    said: dict[str, Any] = dict(metadata(shape))
    write_description(said.get, shape.tied_embeddings, folder)
    layout = _layout(shape)
    write_tensors(folder / "model.safetensors", layout, _tensors(layout))


def _layout(shape: Model) -> Layout:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden_size, shape.intermediate_size
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (shape.vocabulary, hidden),
        "model.norm": (hidden,),
    }
    if not shape.tied_embeddings:
        shapes["lm_head"] = (shape.vocabulary, hidden)
    for number in range(shape.layers):
        shapes |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    return {f"{name}.weight": ("BF16", size) for name, size in shapes.items()}


def _tensors(layout: Layout) -> Iterator[Tensor]:
    """Yield every tensor, cut from a pool that was drawn once; norms are ones."""
    import numpy as np

    sizes = [int(np.prod(size)) for _, size in layout.values()]
    count = min(_POOL, sum(sizes))
    drawn = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(DEVIATION)
    pool = np.resize(to_bfloat16(drawn), count + max(sizes))
    for number, (name, (dtype, size)) in enumerate(layout.items()):
        if len(size) == 1:
            yield Tensor(name, dtype, to_bfloat16(np.ones(size, np.float32)))
        else:
            start = number * _STRIDE % count
            yield Tensor(name, dtype, pool[start : start + int(np.prod(size))].reshape(size))
