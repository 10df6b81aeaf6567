"""Random weights of given shapes: files that engines read, whose weights are of the size that was promised."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.measure.engines.checkpoints import declared
from qplan.measure.engines.checkpoints_random import make_random_checkpoint
from qplan.measure.engines.checkpoints_tensors import read_tensors, to_float32
from qplan.measure.engines.contract import Serving
from qplan.measure.engines.gguf_file import read_gguf
from qplan.measure.engines.gguf_random import draw, make_random_gguf
from qplan.measure.engines.gguf_weights import TYPES
from qplan.measure.engines.random_model import DEVIATION, random_refusal, random_shape, vocabulary
from qplan.measure.load.prompts import Vocabulary

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install 'qplan[llamacpp]'")

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


def asked_for(weights: str, model: str = "llama-2-7b") -> Serving:
    return Serving(model, weights, Quantization.parse("Q8_0"))


def test_random_weights_are_of_the_models_own_shapes_or_of_those_that_are_named(config: Path) -> None:
    assert random_shape(asked_for("random")) == Model.named("llama-2-7b")
    assert random_shape(asked_for("random:llama-2-70b")) == Model.named("llama-2-70b")
    assert random_shape(asked_for(f"random:{config}")) == Model.from_file(config)
    assert random_shape(asked_for("smollm2")) is None


def test_shapes_that_are_not_known_or_not_made_are_refused(config: Path) -> None:
    assert "unknown model 'llama-9'" in str(random_refusal(asked_for("random", "llama-9")))
    config.write_text(json.dumps(CONFIG | {"num_local_experts": 8}))
    assert "dense models" in str(random_refusal(asked_for(f"random:{config}")))
    config.write_text(json.dumps(CONFIG | {"vocab_size": 300}))
    with pytest.raises(InputError, match="a vocabulary of 300"):
        random_shape(asked_for(f"random:{config}"))


@pytest.mark.parametrize("type_name", TYPES)
def test_drawn_blocks_are_centred_weights_of_the_promised_deviation(type_name: str) -> None:
    drawn = draw(type_name, 256 * 1000, seed=1)
    rows = (drawn.view(np.float16) if type_name == "F16" else drawn).reshape(1000, -1)
    weights = gguf.dequantize(rows, gguf.GGMLQuantizationType[type_name])
    assert weights.std() == pytest.approx(DEVIATION, rel=0.05)
    assert abs(weights.mean()) < 0.15 * DEVIATION  # Q4_0's sixteen values are not symmetric


def test_a_random_file_has_every_tensor_in_its_type_and_is_made_once(config: Path, tmp_path: Path) -> None:
    shape = Model.from_file(config)
    prepared = make_random_gguf(shape, "Q4_K", tmp_path / "gguf")
    header = read_gguf(Path(prepared.weights))
    last = header.tensors[-1]
    assert {t.name: t.shape for t in header.tensors}["blk.1.ffn_down.weight"] == (512, 256)
    assert len(header.tensors) == 3 + 9 * shape.layers
    assert not prepared.meaningful
    assert prepared.bits_per_weight == pytest.approx(4.5, rel=0.2)
    assert Path(prepared.weights).stat().st_size >= last.offset
    before = Path(prepared.weights).stat().st_mtime_ns
    assert make_random_gguf(shape, "Q4_K", tmp_path / "gguf") == prepared
    assert Path(prepared.weights).stat().st_mtime_ns == before


def test_tensors_of_a_random_file_differ(config: Path, tmp_path: Path) -> None:
    prepared = make_random_gguf(Model.from_file(config), "Q8_0", tmp_path)
    tensors = {t.name: t for t in gguf.GGUFReader(prepared.weights).tensors}
    up, gate = tensors["blk.0.ffn_up.weight"].data, tensors["blk.0.ffn_gate.weight"].data
    assert up.shape == gate.shape
    assert not np.array_equal(up, gate)


def test_the_disks_room_is_made_by_removing_what_is_made_again_in_seconds(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Model.from_file(config)
    first = Path(make_random_gguf(shape, "Q8_0", tmp_path).weights)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    second = Path(make_random_gguf(shape, "Q4_0", tmp_path).weights)
    assert second.exists()
    assert not first.exists()


def test_a_random_checkpoint_is_one_of_16_bits(config: Path, tmp_path: Path) -> None:
    shape = Model.from_file(config)
    folder = Path(make_random_checkpoint(shape, tmp_path).weights)
    assert declared(folder).is_16_bit
    made = Model.from_file(folder / "config.json")
    assert (made.layers, made.hidden_size, made.kv_heads) == (shape.layers, shape.hidden_size, shape.kv_heads)
    tensors = {t.name: t for t in read_tensors(folder / "model.safetensors")}
    gate = to_float32(tensors["model.layers.1.mlp.gate_proj.weight"])
    assert gate.shape == (512, 256)
    assert gate.std() == pytest.approx(DEVIATION, rel=0.05)
    assert (to_float32(tensors["model.norm.weight"]) == 1).all()


def test_the_made_tokenizer_keeps_the_load_clients_words_whole() -> None:
    tokens, merges = vocabulary(2048)
    assert len(tokens) == len(set(tokens)) == 2048
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    for word in Vocabulary().words:
        assert _encoded("Ġ" + word, ranks) == ["Ġ" + word]


def _encoded(text: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """Merge pairs by rank, as byte-level BPE does."""
    parts = list(text)
    while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        at = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == best)
        parts[at : at + 2] = ["".join(best)]
    return parts
