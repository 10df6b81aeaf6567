"""Log-probabilities of given texts from a GGUF file, as a program: ``python -m qplan.measure.quality.llamacpp_scores``.

llama.cpp's server gives log-probabilities of generated tokens only. The library that it runs on gives the logits of
every position, and the package `xllamacpp` exports its C interface (``llama.h``). This program loads the weights file
and the KV-cache types that are served, in a process of its own, so that neither a crash nor the memory of a second
copy reaches the measuring side. It prints one line of JSON when the model is loaded, then answers each line of
standard input, ``{"text": ..., "save": path or null}``, with one line: see :class:`LlamaCpp`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qplan.core.errors import MeasurementError

_PARAMETER_WORDS = 256  # more 32-bit words than any version's parameter structures have
_UNSPECIFIED = -1
_MINUS_ONE = -1082130432  # the bits of float -1.0
_LOG_ERROR = 4
_ROWS = 64  # positions whose probabilities are computed at once


KV_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
"""Codes of ggml's number types that a KV cache can have; GGUF files carry them, so they never change."""


class _Parameters(ctypes.Structure):
    """``llama_model_params`` or ``llama_context_params`` of whatever version, as 32-bit words.

    Both are larger than 16 bytes, hence handed over in memory: x86-64 and AArch64 alike read no further than what they
    know. The fields change from release to release, so those that are set are found by their defaults.
    """

    _fields_ = (("words", ctypes.c_int32 * _PARAMETER_WORDS),)


class _Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class LlamaCpp:
    """A loaded GGUF file.

    Parameters
    ----------
    gguf
        Weights.
    kv_types
        ggml types of K and V cache, such as ``("f16", "q8_0")``.
    flash_attention
        ``on``, ``off`` or ``auto``.
    context_tokens
        Longest text, in tokens.
    threads
        CPU threads.

    Raises
    ------
    MeasurementError
        The library is not installed or of an unknown shape, or it cannot load the file.
    """

    def __init__(self, gguf: Path, kv_types: tuple[str, str], flash_attention: str, context_tokens: int, threads: int):
        self._lib = _library()
        self._last_lines: deque[str] = deque(maxlen=3)
        self._log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(self._on_log)
        self._lib.llama_log_set(self._log, None)
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(str(gguf).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise MeasurementError(f"llama.cpp cannot load {gguf}: {'; '.join(self._last_lines) or 'no reason given'}")
        parameters = self._lib.llama_context_default_params()
        set_context(parameters.words, context_tokens, [KV_TYPES[name] for name in kv_types], flash_attention)
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise MeasurementError(f"llama.cpp cannot start on {gguf} with KV cache {'/'.join(kv_types)}: "
                                   f"{'; '.join(self._last_lines) or 'no reason given'}")  # fmt: skip
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self._memory = self._lib.llama_get_memory(self._context)
        self._cached: list[int] = []  # tokens of the last text, whose keys and values the model still holds
        self._scored: tuple[list[float], list[int]] = ([], [])  # and their log-probabilities and rivals
        self.context_tokens = context_tokens
        self.vocabulary_size = int(self._lib.llama_vocab_n_tokens(self._vocabulary))

    def tokenize(self, text: str) -> list[int]:
        """Split a text into tokens, with the beginning-of-sequence token where the model wants one."""
        data = text.encode()
        room = len(data) + 2
        tokens = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), tokens, room, True, False)
        assert count >= 0, "a token is at least one byte"
        return tokens[:count]

    def score(self, text: str, save: Path | None) -> dict[str, Any]:
        """Score every token of a text but the first.

        What a text has in common with the one before it is not computed again, unless distributions are saved.

        Parameters
        ----------
        save
            Where the whole distributions go: log-probabilities as ``float16``, shape ``(scored tokens, vocabulary)``.

        Returns
        -------
        dict
            ``tokens``, ``logprobs`` and ``top1``: ids of the scored tokens, their log-probabilities in nats, and the
            most probable ids.
        """
        import numpy as np

        tokens = self.tokenize(text)
        if len(tokens) < 2:
            raise MeasurementError("the text has fewer than two tokens")
        if len(tokens) > self.context_tokens:
            raise MeasurementError(f"the text has {len(tokens)} tokens, more than the context of {self.context_tokens}")
        known = 0 if save else self._reuse(tokens)
        logits = self._logits(tokens, known)
        actual = np.array(tokens[known + 1 :])
        logprobs, top1 = self._scored[0][:known], self._scored[1][:known]
        kept = []
        for start in range(0, len(actual), _ROWS):
            rows = logits[start : start + _ROWS].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            logprobs += np.round(rows[np.arange(len(rows)), actual[start : start + _ROWS]], 6).tolist()
            top1 += rows.argmax(axis=1).tolist()
            if save is not None:
                kept.append(rows.astype(np.float16))
        if save is not None:
            np.save(save, np.concatenate(kept))
        self._cached, self._scored = tokens, (logprobs, top1)
        return {"tokens": tokens[1:], "logprobs": logprobs, "top1": top1}

    def _reuse(self, tokens: list[int]) -> int:
        """Return how many leading tokens need not be computed again.

        The last token in common is: what follows it differs.
        """
        shared = 0
        while shared < min(len(tokens), len(self._cached)) and tokens[shared] == self._cached[shared]:
            shared += 1
        known = max(0, min(shared, len(tokens) - 1) - 1)
        return known if known and self._lib.llama_memory_seq_rm(self._memory, 0, known, -1) else 0

    def _logits(self, tokens: list[int], known: int) -> Any:
        """Return the logits behind each token but the `known` first and the last, one row a token."""
        import numpy as np

        count = len(tokens) - known
        if known == 0:
            self._lib.llama_memory_clear(self._memory, True)
        self._cached = []
        batch = self._lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index, token in enumerate(tokens[known:]):
                batch.token[index] = token
                batch.pos[index] = known + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = 1
            code = self._lib.llama_decode(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if code:
            raise MeasurementError(f"llama.cpp could not decode (code {code}): {'; '.join(self._last_lines)}")
        address = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(address, (count, self.vocabulary_size))[:-1]

    def _on_log(self, level: int, text: bytes, _: object) -> None:
        if level == _LOG_ERROR:
            self._last_lines.append(text.decode(errors="replace").strip())


def set_context(words: Any, context_tokens: int, kv_types: list[int], flash_attention: str) -> None:
    """Set the fields of default ``llama_context_params`` that scoring needs.

    Sizes are the first four words. The four choices left unspecified (-1) are RoPE scaling, pooling, attention type and
    flash attention; the first two words that are 1 (F16) behind them are the types of K and V cache.

    Raises
    ------
    MeasurementError
        The defaults are not where every known version has them.
    """
    unspecified = [i for i in range(4, 40) if list(words[i : i + 4]) == [_UNSPECIFIED] * 4]
    half = [i for i in range(16, 40) if words[i] == words[i + 1] == 1 and words[i - 1] == words[i - 2] == 0]
    if list(words[:4]) != [512, 2048, 512, 1] or len(unspecified) != 1 or not half or half[0] < unspecified[0]:
        raise MeasurementError("this version of llama.cpp lays out llama_context_params in a way that is not known")
    words[0] = words[1] = context_tokens  # a text is one batch, computed 512 tokens at a time as the server does
    words[unspecified[0] + 3] = {"auto": -1, "off": 0, "on": 1}[flash_attention]
    words[half[0]], words[half[0] + 1] = kv_types


def _library() -> Any:
    """Load llama.cpp from the package `xllamacpp` without importing it."""
    spec = find_spec("xllamacpp")
    files = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) if spec and spec.origin else []
    if not files:
        raise MeasurementError("llama.cpp is not installed: pip install 'qplan[llamacpp]'")
    lib = ctypes.CDLL(str(files[0]))
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_log_set": (None, [pointer, pointer]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_Parameters, []),
        "llama_context_default_params": (_Parameters, []),
        "llama_model_load_from_file": (pointer, [text, _Parameters]),
        "llama_init_from_model": (pointer, [pointer, _Parameters]),
        "llama_set_n_threads": (None, [pointer, integer, integer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (integer, [pointer]),
        "llama_tokenize": (
            integer,
            [pointer, text, integer, ctypes.POINTER(integer), integer, ctypes.c_bool, ctypes.c_bool],
        ),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_memory_seq_rm": (ctypes.c_bool, [pointer, integer, integer, integer]),
        "llama_batch_init": (_Batch, [integer, integer, integer]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (integer, [pointer, _Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise MeasurementError(f"this version of llama.cpp does not export {name}") from None
        function.restype, function.argtypes = result, arguments
    return lib


def main(arguments: list[str] | None = None) -> None:
    """Load the model, then answer requests until standard input ends."""
    parser = argparse.ArgumentParser(prog="llamacpp_scores", allow_abbrev=False)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--cache-type-k", choices=KV_TYPES, default="f16")
    parser.add_argument("--cache-type-v", choices=KV_TYPES, default="f16")
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--ctx-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    try:
        model = LlamaCpp(
            given.model, (given.cache_type_k, given.cache_type_v), given.flash_attn, given.ctx_size, given.threads
        )
    except MeasurementError as error:
        _answer({"error": str(error)})
        return
    _answer({"vocabulary": model.vocabulary_size})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _answer(model.score(request["text"], Path(request["save"]) if request["save"] else None))
        except MeasurementError as error:
            _answer({"error": str(error)})


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201 - this is a program


if __name__ == "__main__":
    main()
