"""Models of given shapes with random weights: to measure speed and power where the real weights are not at hand.

Latency depends on shapes and formats, not on what the weights say; power depends a little on their bits, which are as
random here as those of trained weights nearly are. Quality cannot be measured on such a model, nor can its output be
checked for sense: :attr:`~qplan.measure.engines.contract.Prepared.meaningful` is false.

In a plan they are the weights ``random``, of the shapes of the model's own name, or ``random:NAME`` with another name
of the catalogue or the path of a ``config.json``. The tokenizer is made too: a byte-level BPE that keeps the load
client's words whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from itertools import product
from string import ascii_lowercase
from typing import TYPE_CHECKING

from qplan.core.errors import InputError
from qplan.core.model import Model
from qplan.measure.load.prompts import Vocabulary

if TYPE_CHECKING:
    from qplan.measure.engines.contract import Serving
    from qplan.measure.engines.gguf_file import Value

RANDOM = "random"
DEVIATION = 0.02
"""Standard deviation of random weights, that of the initialization of Llama (arXiv 2302.13971's code)."""

_BEGIN, _END = "<s>", "</s>"
_NORMAL, _CONTROL = 1, 3  # gguf.TokenType
_SPACE = "Ġ"  # a space, as byte-level BPE writes it
_RECIPE_VERSION = 1


def random_shape(serving: Serving) -> Model | None:
    """Return the shapes that random weights are asked for, or ``None`` where `serving` names weights.

    Raises
    ------
    InputError
        The shapes are not known, or are not those of Llama.
    """
    kind, _, name = serving.weights.partition(":")
    if kind != RANDOM:
        return None
    shape = Model.named(name or serving.model, f"weights: {serving.weights}")
    if shape.experts > 1 or shape.attention_bias:
        raise InputError(f"weights: {serving.weights}: random weights are made for dense models without biases only")
    smallest = 256 + 2 + len(_tokens_of_words())
    if shape.vocabulary < smallest:
        raise InputError(f"weights: {serving.weights}: a vocabulary of {shape.vocabulary}; expected {smallest} or more")
    return shape


def random_refusal(serving: Serving) -> str | None:
    """Say why the random weights of `serving` cannot be made; ``None`` where they can, or where none are asked for."""
    try:
        random_shape(serving)
    except InputError as error:
        return str(error)
    return None


def random_name(shape: Model, variant: str) -> str:
    """Return a file name that tells shapes and variant from others."""
    digest = hashlib.sha256(repr((_RECIPE_VERSION, astuple(shape))).encode()).hexdigest()[:8]
    return f"{RANDOM}-{shape.name}-{digest}-{variant}"


def random_recipe(shape: Model, variant: str) -> str:
    """Say for provenance what the weights are."""
    return f"random weights of the shapes of {shape.name}, {variant}; speed and power only, no quality"


def metadata(shape: Model, file_type: int = 0) -> dict[str, Value | Sequence[str] | Sequence[int]]:
    """Return what a GGUF file says of the model and its tokenizer, by key."""
    tokens, merges = vocabulary(shape.vocabulary)
    llama: dict[str, Value] = {
        "block_count": shape.layers,
        "context_length": shape.max_context,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": shape.intermediate_size,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": 10_000.0,
        "vocab_size": shape.vocabulary,
    }
    return {
        "general.architecture": "llama",
        "general.name": f"{shape.name}, random weights",
        "general.file_type": file_type,
        **{f"llama.{key}": value for key, value in llama.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_CONTROL, _CONTROL] + [_NORMAL] * (shape.vocabulary - 2),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Return the tokens and merges of a byte-level BPE of `size` tokens.

    Every word of the load client is built letter by letter from the space before it. Each merge's left part begins
    with that space, so that no two merges compete. What is left of the vocabulary are tokens that no text is split
    into, but which random weights generate.
    """
    prefixes = _tokens_of_words()
    tokens = [_BEGIN, _END, *_byte_tokens(), *prefixes]
    known = set(tokens)
    fillers = (_SPACE + "".join(letters) for letters in product(ascii_lowercase, repeat=4))
    while len(tokens) < size:
        filler = next(fillers)
        if filler not in known:
            tokens.append(filler)
    return tokens, [f"{prefix[:-1]} {prefix[-1]}" for prefix in prefixes]


def _tokens_of_words() -> list[str]:
    """Return every beginning of the load client's words, shorter ones first."""
    words = [_SPACE + word for word in Vocabulary().words]
    beginnings = {word[:end] for word in words for end in range(2, len(word) + 1)}
    return sorted(beginnings, key=lambda text: (len(text), text))


def _byte_tokens() -> list[str]:
    """Return how byte-level BPE writes each byte: itself where it is visible, else a character beyond Latin-1."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]
