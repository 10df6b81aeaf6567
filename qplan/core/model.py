"""Language models by their shapes: enough to count weights, KV cache and operations.

A shape comes from the bundled catalogue or from a Hugging Face ``config.json``; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qplan.core.catalogue import document
from qplan.core.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer with gated MLPs.

    Attributes
    ----------
    kv_heads
        Heads of the KV cache: fewer than `heads` under grouped-query attention.
    experts, experts_per_token
        1 and 1 for a dense model.
    max_context
        Longest sequence in tokens, prompt and output together.
    tied_embeddings
        Whether input embedding and output head share their weights.
    """

    name: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_context: int
    tied_embeddings: bool = False
    attention_bias: bool = False
    experts: int = 1
    experts_per_token: int = 1

    def __post_init__(self) -> None:
        for field in ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocabulary"):
            if getattr(self, field) < 1:
                raise InputError(f"model {self.name}: {field} is {getattr(self, field)}; expected at least 1")
        if self.heads % self.kv_heads:
            raise InputError(f"model {self.name}: {self.heads} heads do not divide among {self.kv_heads} KV heads")

    @classmethod
    def named(cls, name: str, where: str = "--model") -> Model:
        """Find a model of the catalogue by name, alias or Hugging Face id, or read a ``config.json`` or its folder."""
        known = _by_alias().get(name.strip().casefold())
        if known is not None:
            return known
        path = Path(name)
        if path.is_dir() or path.suffix == ".json":
            return cls.from_file(path / "config.json" if path.is_dir() else path, where)
        names = [model.name for model in cls.catalogue()]
        raise InputError(
            f"{where}: unknown model '{name}'; expected one of {', '.join(names)}, or the path of a Hugging Face "
            f"config.json{nearest(name, _by_alias())}"
        )

    @staticmethod
    def catalogue() -> tuple[Model, ...]:
        """Return the models that ship with qplan."""
        return tuple(dict.fromkeys(_by_alias().values()))

    @classmethod
    def from_file(cls, path: Path, where: str = "--model") -> Model:
        """Read a Hugging Face ``config.json``; the model is named after its folder."""
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{where}: cannot read {path} as a config.json: {error}") from None
        if not isinstance(config, dict):
            raise InputError(f"{where}: {path} holds no JSON object; expected a Hugging Face config.json")
        return cls.from_config(path.resolve().parent.name, config, where=f"{where}: {path}")

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any], where: str = "config.json") -> Model:
        """Make a model from the fields of a Hugging Face ``config.json``.

        First-generation Qwen (``model_type`` "qwen") names twice its MLP width in ``intermediate_size``.
        """

        def whole(*keys: str, default: int | None = None) -> int:
            for key in keys:
                value = config.get(key)
                if value is not None:
                    if isinstance(value, bool) or not isinstance(value, int):
                        raise InputError(f"{where}: field {key} is {value!r}; expected a whole number")
                    return value
            if default is None:
                raise InputError(f"{where}: field {keys[0]} is missing")
            return default

        kind = config.get("model_type", "")
        heads = whole("num_attention_heads", "n_head")
        hidden = whole("hidden_size", "n_embd")
        if heads < 1:
            raise InputError(f"{where}: field num_attention_heads is {heads}; expected at least 1")
        experts = whole("num_local_experts", "num_experts", default=1)
        dense_width = whole("intermediate_size", "n_inner", default=4 * hidden)
        return cls(
            name=name,
            layers=whole("num_hidden_layers", "n_layer"),
            hidden_size=hidden,
            intermediate_size=(
                dense_width // 2
                if kind == "qwen"
                else whole("moe_intermediate_size", default=dense_width)
                if experts > 1
                else dense_width
            ),
            heads=heads,
            kv_heads=whole("num_key_value_heads", default=heads),
            head_dim=whole("head_dim", "kv_channels", default=hidden // heads),
            vocabulary=whole("vocab_size"),
            max_context=whole("max_position_embeddings", "seq_length", "n_positions", default=2048),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", kind in ("qwen", "qwen2"))),
            experts=experts,
            experts_per_token=whole("num_experts_per_tok", "moe_top_k", default=1),
        )

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers between embedding and head: what weight quantization shrinks."""
        attention = self.head_dim * self.hidden_size * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size * self.experts
        router = self.hidden_size * self.experts if self.experts > 1 else 0
        return self.layers * (attention + mlp + router)

    @property
    def other_parameters(self) -> int:
        """Embedding, output head, norms and attention biases."""
        tables = self.vocabulary * self.hidden_size * (1 if self.tied_embeddings else 2)
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) if self.attention_bias else 0
        return tables + self.hidden_size + self.layers * (2 * self.hidden_size + biases)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear_parameters + self.other_parameters

    def __str__(self) -> str:
        """Print the name."""
        return self.name


@cache
def _by_alias() -> dict[str, Model]:
    models = {}
    for entry in document("models.json"):
        model = Model.from_config(entry["name"], entry["config"], where=f"models.json, {entry['name']}")
        for alias in (entry["name"], entry["hf_id"], *entry["aliases"]):
            models[alias.casefold()] = model
    return models
