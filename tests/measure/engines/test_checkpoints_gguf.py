"""A GGUF file as a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.measure.engines.checkpoints_gguf import write_checkpoint
from qplan.measure.engines.checkpoints_tensors import read_tensors, to_float32

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 2, 1, 4, 8


def write_gguf(path: Path, weights: dict[str, np.ndarray], *, architecture: str = "llama", pre: str = "smollm") -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(16)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<end>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, values in weights.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Order rows as llama.cpp does: within a head, row i of the first half, then row i of the second half."""
    rows = []
    for head in range(heads):
        first = head * HEAD_DIM
        for at in range(HEAD_DIM // 2):
            rows += [weights[first + at], weights[first + HEAD_DIM // 2 + at]]
    return np.stack(rows)


def test_weights_keep_their_place_and_rotary_heads_their_halves(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).integers(-64, 64, size=(64, HIDDEN)).astype(np.float32)  # exact in bfloat16
    query, key = draw[: HEADS * HEAD_DIM], draw[8 : 8 + KV_HEADS * HEAD_DIM]
    weights = {
        "token_embd.weight": draw[12:16],
        "blk.0.attn_q.weight": interleaved(query, HEADS),
        "blk.0.attn_k.weight": interleaved(key, KV_HEADS),
        "blk.0.ffn_down.weight": draw[16:24],
        "output_norm.weight": draw[0],
    }
    write_gguf(tmp_path / "tiny.gguf", weights)
    write_checkpoint(tmp_path / "tiny.gguf", tmp_path)
    made = {tensor.name: to_float32(tensor) for tensor in read_tensors(tmp_path / "model.safetensors")}
    assert np.array_equal(made["model.layers.0.self_attn.q_proj.weight"], query)
    assert np.array_equal(made["model.layers.0.self_attn.k_proj.weight"], key)
    assert np.array_equal(made["model.layers.0.mlp.down_proj.weight"], draw[16:24])
    assert np.array_equal(made["model.embed_tokens.weight"], draw[12:16])
    assert np.array_equal(made["model.norm.weight"], draw[0])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_key_value_heads"], config["head_dim"], config["vocab_size"]) == (KV_HEADS, HEAD_DIM, 4)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert tokenizer["model"]["merges"] == ["a b"]
    assert [token["content"] for token in tokenizer["added_tokens"]] == ["<end>"]


@pytest.mark.parametrize(("architecture", "pre"), [("qwen2", "smollm"), ("llama", "llama-bpe")])
def test_what_is_not_converted_is_refused(architecture: str, pre: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", {"output_norm.weight": np.ones(8)}, architecture=architecture, pre=pre)
    with pytest.raises(InputError, match="give the model's Hugging Face folder"):
        write_checkpoint(tmp_path / "tiny.gguf", tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model, whatever its name says")
    with pytest.raises(InputError, match="cannot read this as GGUF"):
        write_checkpoint(tmp_path / "x.gguf", tmp_path)
