"""Recorded traffic: when requests came, how long they were, and what they shared, to be replayed at any speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from qplan.core.errors import InputError
from qplan.measure.load.prompts import Prompt, Vocabulary
from qplan.measure.load.requests import Floats, Ints
from qplan.profiles.workloads import read_trace_rows

BLOCK_TOKENS = 512
"""Tokens that one entry of ``hash_ids`` stands for in Mooncake's traces."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests that came to a real service.

    Attributes
    ----------
    times_s
        Arrivals, ascending from 0, shape ``(n,)``.
    input_tokens, output_tokens
        Shape ``(n,)``.
    blocks
        Of each request, the identities of its prompt's blocks of :data:`BLOCK_TOKENS` tokens: what begins with the same
        blocks began with the same text. Empty where the trace does not say.
    """

    times_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    blocks: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.times_s)

    def schedule(self, speed_up: float = 1.0) -> Floats:
        """Return the times at which to send, `speed_up` times as fast as they came, shape ``(n,)``."""
        if speed_up <= 0:
            raise InputError(f"speed-up of {speed_up:g}; expected more than 0")
        return self.times_s / speed_up

    def first(self, duration_s: float) -> Trace:
        """Return what came in the first `duration_s` seconds."""
        count = int(np.searchsorted(self.times_s, duration_s))
        return replace(
            self,
            times_s=self.times_s[:count],
            input_tokens=self.input_tokens[:count],
            output_tokens=self.output_tokens[:count],
            blocks=self.blocks[:count],
        )

    def prompts(self, vocabulary: Vocabulary | None = None, *, seed: int = 0) -> list[Prompt]:
        """Make a prompt of each request's length; equal blocks give equal text, all other text is random."""
        vocabulary = vocabulary or Vocabulary()
        random = np.random.default_rng([seed, 1])
        lengths = list(zip(self.input_tokens.tolist(), self.output_tokens.tolist(), strict=True))
        if not self.blocks:
            return [vocabulary.prompt(given, generated, random) for given, generated in lengths]
        overhead = vocabulary.overhead or 0
        bare = replace(vocabulary, overhead=0)
        texts: dict[int, list[str]] = {}
        prompts = []
        for (given, generated), blocks in zip(lengths, self.blocks, strict=True):
            if not blocks:
                prompts.append(vocabulary.prompt(given, generated, random))
                continue
            for block in blocks:
                if block not in texts:
                    texts[block] = bare.text(BLOCK_TOKENS, np.random.default_rng([seed, 2, block])).split(" ")
            first = texts[blocks[0]][0]  # the same word in all, counted in the overhead
            words = [word for block in blocks for word in texts[block][1:]][: max(0, given - overhead)]
            known = None if vocabulary.overhead is None else overhead + len(words)
            prompts.append(Prompt(" ".join([first, *words]), known, generated))
        return prompts


def read_trace(path: Path, where: str = "--trace") -> Trace:
    """Read a trace: a CSV file as Azure publishes them, or a JSONL file as Mooncake does.

    Requests that ask nothing or generate nothing are left out.

    Raises
    ------
    InputError
        It cannot be read, or is neither; with its line.
    """
    if not path.is_file():
        raise InputError(f"{where}: no file {path}")
    if path.suffix.casefold() == ".csv":
        rows = _azure(path, where)
    elif path.suffix.casefold() in (".jsonl", ".json"):
        rows = _mooncake(path, where)
    else:
        raise InputError(f"{where}: {path} is neither .csv (Azure) nor .jsonl (Mooncake)")
    kept = sorted((row for row in rows if row[1] >= 1 and row[2] >= 1), key=lambda row: row[0])
    if not kept:
        raise InputError(f"{where}: {path} holds no request with at least one token in and out")
    times = np.array([row[0] for row in kept])
    blocks = tuple(row[3] for row in kept)
    return Trace(
        times - times[0],
        np.array([row[1] for row in kept], np.int64),
        np.array([row[2] for row in kept], np.int64),
        blocks if any(blocks) else (),
    )


_Rows = Sequence[tuple[float, float, float, tuple[int, ...]]]


def _azure(path: Path, where: str) -> _Rows:
    rows = []
    for line, (text, given, generated) in enumerate(read_trace_rows(path, where, timed=True), start=2):
        try:
            time_s = datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise InputError(
                f"{where}: {path}, line {line}: TIMESTAMP is '{text}'; expected such as 2023-11-16 18:17:03.98"
            ) from None
        rows.append((time_s, given, generated, ()))
    return rows


def _mooncake(path: Path, where: str) -> _Rows:
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                entry = json.loads(text)
                blocks = tuple(map(int, entry.get("hash_ids") or ()))
                row = (float(entry["timestamp"]) / 1e3, float(entry["input_length"]), float(entry["output_length"]))
                rows.append((*row, tuple(abs(block) for block in blocks)))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(
                    f"{where}: {path}, line {line}: expected a JSON object with timestamp (ms), input_length and "
                    "output_length"
                ) from None
    return rows
