"""A GGUF file as a Hugging Face checkpoint, for engines that do not read GGUF well.

Weights are dequantized and rounded to bfloat16; ``config.json`` and the tokenizer come from the file's metadata.
Only what can be checked is converted: the ``llama`` architecture with the tokenizer of SmolLM.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.engines.checkpoints_tensors import Tensor, to_bfloat16, write_tensors
from qplan.measure.engines.gguf_file import read_gguf

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PLAIN_TOKEN = 1  # gguf.TokenType.NORMAL


def write_checkpoint(gguf: Path, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer of `gguf` into the existing `folder`.

    Raises
    ------
    InputError
        The file is no GGUF file, or of an architecture or tokenizer that is not converted.
    MeasurementError
        The package ``gguf`` is not installed.
    """
    reader = _open(gguf)

    def field(key: str, default: Any = None) -> Any:
        entry = reader.get_field(key)
        return default if entry is None else entry.contents()

    architecture, tokenizer = field("general.architecture"), field("tokenizer.ggml.pre")
    if (architecture, tokenizer) != ("llama", "smollm"):
        raise InputError(
            f"{gguf}: architecture '{architecture}' with tokenizer '{tokenizer}' is not converted; expected 'llama' "
            "with 'smollm', or give the model's Hugging Face folder instead of its GGUF file"
        )
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    config = write_description(field, "output" not in tensors, folder)
    layout = {_name(name): ("BF16", tuple(int(n) for n in reversed(t.shape))) for name, t in tensors.items()}
    write_tensors(folder / "model.safetensors", layout, _tensors(tensors, config))


def write_description(field: Callable[..., Any], tied: bool, folder: Path) -> dict[str, Any]:
    """Write ``config.json`` and the tokenizer of a model that a GGUF file's metadata describe; return the former.

    Parameters
    ----------
    field
        Returns the value of a key, or a default where there is no such key.
    tied
        Whether the embeddings serve as the output matrix.
    """
    config = _config(field, tied=tied)
    for name, content in {
        "config.json": config,
        "generation_config.json": {"eos_token_id": config["eos_token_id"], "bos_token_id": config["bos_token_id"]},
        "tokenizer.json": _tokenizer(field),
        "tokenizer_config.json": _tokenizer_config(field),
    }.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return config


def weight_types(gguf: Path) -> str:
    """Return the most common type of the matrices of `gguf`, such as ``Q4_1``."""
    from gguf import GGMLQuantizationType

    types = Counter(tensor.ggml_type for tensor in read_gguf(gguf).tensors if len(tensor.shape) > 1)
    return str(GGMLQuantizationType(types.most_common(1)[0][0]).name)


def _open(gguf: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MeasurementError("reading GGUF files needs the package gguf: pip install 'qplan[llamacpp]'") from None
    try:
        return GGUFReader(gguf)
    except (OSError, ValueError) as error:
        raise InputError(f"{gguf}: cannot read this as GGUF ({error})") from None


def _name(gguf_name: str) -> str:
    block, _, rest = gguf_name.removeprefix("blk.").partition(".")
    layer = f"model.layers.{block}.{_BLOCK[rest]}" if gguf_name.startswith("blk.") else _OUTER[gguf_name]
    return f"{layer}.weight"


def _tensors(tensors: dict[str, Any], config: dict[str, Any]) -> Iterator[Tensor]:
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        values = dequantize(tensor.data, tensor.tensor_type)
        kind = name.rpartition(".")[2]
        if kind in heads:
            # llama.cpp interleaves the two halves of each rotary head; Hugging Face keeps them apart.
            rows, columns = values.shape
            halves = values.reshape(heads[kind], rows // heads[kind] // 2, 2, columns)
            values = halves.swapaxes(1, 2).reshape(rows, columns)
        yield Tensor(_name(name), "BF16", to_bfloat16(values))


def _config(field: Callable[..., Any], *, tied: bool) -> dict[str, Any]:
    hidden, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # the name before Transformers 5
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv", heads),
        "head_dim": hidden // heads,
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # stored as a 32-bit float
        "rope_theta": field("llama.rope.freq_base", 10_000.0),
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "tie_word_embeddings": tied,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "attention_bias": False,
        "mlp_bias": False,
    }


def _tokenizer(field: Callable[..., Any]) -> dict[str, Any]:
    """Return the content of ``tokenizer.json``: byte-level BPE after splitting off every digit, as SmolLM does."""
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind != _PLAIN_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": field("tokenizer.ggml.merges"),
        },
    }


def _tokenizer_config(field: Callable[..., Any]) -> dict[str, Any]:
    tokens = field("tokenizer.ggml.tokens")
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {name: field(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": field("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(field("tokenizer.ggml.add_bos_token", False)),
        "chat_template": field("tokenizer.chat_template"),
        **{name: tokens[index] for name, index in ids.items() if index is not None},
    }
