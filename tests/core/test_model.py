from __future__ import annotations

import json
from pathlib import Path

import pytest

from qplan.core.catalogue import document
from qplan.core.errors import InputError
from qplan.core.model import Model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize("entry", document("models.json"), ids=lambda entry: entry["name"])
def test_parameter_arithmetic_meets_the_published_total(entry: dict[str, object]) -> None:
    model = Model.named(str(entry["name"]))
    assert model.parameters == pytest.approx(entry["parameters"], rel=1e-4)


def test_a_model_is_found_by_its_hugging_face_id() -> None:
    assert Model.named("meta-llama/Llama-2-7b-hf") is Model.named("Llama-2-7B")


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"--model: unknown model 'lama-2-7b'.*did you mean 'llama-2-7b'"):
        Model.named("lama-2-7b")


def test_a_config_json_is_read_from_its_folder_and_named_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    model = Model.named(str(folder))
    assert model.name == "my-llama"
    assert model.parameters == Model.named("llama-2-7b").parameters


def test_first_generation_qwen_states_twice_its_mlp_width() -> None:
    config = {**LLAMA, "model_type": "qwen", "intermediate_size": 22016}
    assert Model.from_config("qwen", config).intermediate_size == 11008


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "field hidden_size is missing"),
        ({"num_attention_heads": "32"}, "field num_attention_heads is '32'; expected a whole number"),
        ({"num_attention_heads": 0}, "expected at least 1"),
        ({"num_hidden_layers": -1}, "expected at least 1"),
        ({"num_key_value_heads": 5}, "do not divide among 5 KV heads"),
        ({"vocab_size": True}, "expected a whole number"),
    ],
)
def test_a_wrong_config_names_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model.from_config("broken", {**LLAMA, **change})


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_what_is_no_json_object_is_an_input_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        Model.named(str(path))
