"""Workloads from what a user names: a mix, fixed lengths, a trace, or a dataset.

A trace is a CSV file with the columns of Azure's public LLM traces, ``TIMESTAMP, ContextTokens, GeneratedTokens``. A
dataset is a Hugging Face name or a local path, read through the library ``datasets`` (extra ``qplan[datasets]``),
with one of the column pairs of :data:`TEXT_COLUMNS` or a ShareGPT-like ``conversations``; its tokens are counted as
:data:`CHARACTERS_PER_TOKEN` characters each, which the workload's source says.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError, nearest
from qplan.core.workload import Workload
from qplan.profiles.observations import one_line

TRACE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TEXT_COLUMNS = (
    ("prompt", "canonical_solution"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("article", "highlights"),
    ("document", "summary"),
    ("context", "answers"),
)
CHARACTERS_PER_TOKEN = 4.0
_MAX_ROWS = 100_000


def read_workload(text: str, where: str = "--workload") -> Workload:
    """Read a workload: ``chat``, ``isl=512,osl=128``, a trace's path, a dataset's name or path.

    Raises
    ------
    InputError
        When it is none of these, or a file is not what it should be (with its line).
    """
    named = Workload.named(text)
    if named is not None:
        return named
    if "=" in text:
        return Workload.fixed(text, where)
    path = Path(text)
    if path.suffix.casefold() == ".csv" and not path.exists():
        raise InputError(f"{where}: no file {path}")
    if path.suffix.casefold() == ".csv":
        return _trace(path, where)
    if path.exists() or "/" in text:
        return _dataset(text, where)
    raise InputError(
        f"{where}: unknown workload '{text}'; expected one of {', '.join(Workload.names())}, isl=TOKENS,osl=TOKENS, a "
        f"trace (CSV), or a dataset's path or OWNER/NAME{nearest(text, Workload.names())}"
    )


def read_trace_rows(path: Path, where: str, *, timed: bool) -> list[tuple[str, float, float]]:
    """Read a trace as ``(timestamp as written, prompt tokens, generated tokens)``; only a `timed` one needs the first.

    Raises
    ------
    InputError
        A column is missing, or a line holds no token counts.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            needed = TRACE_COLUMNS if timed else TRACE_COLUMNS[1:]
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{where}: {path} has no column {missing[0]}; expected the columns {', '.join(TRACE_COLUMNS)}"
                )
            time, *tokens = TRACE_COLUMNS
            rows = []
            for row in reader:
                given, generated = (_tokens(row[name], name, path, reader.line_num, where) for name in tokens)
                rows.append((row.get(time) or "", given, generated))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where}: cannot read {path}: {error}") from None


def _trace(path: Path, where: str) -> Workload:
    lengths = [(given, generated) for _, given, generated in read_trace_rows(path, where, timed=False)]
    return _of_lengths(path.name, "general", lengths, f"trace {path.name}, {len(lengths)} requests", where)


def _tokens(text: str | None, column: str, path: Path, line: int, where: str) -> float:
    try:
        tokens = float(text or "")
    except ValueError:
        tokens = -1.0
    if not 0 <= tokens < 1e9:
        raise InputError(f"{where}: {path}, line {line}: {column} is '{text}'; expected a number of tokens")
    return tokens


def read_texts(text: str, where: str, config: str | None = None) -> list[tuple[str, str]]:
    """Read ``(prompt, reply)`` pairs of a dataset, by its path or name; `config` chooses among a dataset's variants.

    Raises
    ------
    InputError
        The library is missing, the dataset cannot be loaded (or fetched: offline), or its columns are unknown.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{where}: reading the dataset '{text}' needs the library datasets: pip install 'qplan[datasets]'"
        ) from None
    path = Path(text)
    kinds = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    try:
        if path.suffix.casefold() in kinds and path.is_file():
            rows = datasets.load_dataset(kinds[path.suffix.casefold()], data_files=str(path), split="train")
        else:
            loaded = datasets.load_dataset(text, config)
            rows = loaded[next(iter(loaded))]
    except Exception as error:  # datasets raises whatever its readers and the network raise
        cause = one_line(error) or type(error).__name__
        raise InputError(f"{where}: cannot load the dataset '{text}': {cause}") from None
    return list(_text_pairs(rows.select(range(min(len(rows), _MAX_ROWS))), rows.column_names, text, where))


def _dataset(text: str, where: str) -> Workload:
    lengths = [
        (len(prompt) / CHARACTERS_PER_TOKEN, len(reply) / CHARACTERS_PER_TOKEN)
        for prompt, reply in read_texts(text, where)
    ]
    counted = f"{CHARACTERS_PER_TOKEN:g} characters counted as a token"
    return _of_lengths(text, "general", lengths, f"dataset {text}, {len(lengths)} rows, {counted}", where)


def _text_pairs(
    rows: Iterable[Mapping[str, Any]], columns: list[str], text: str, where: str
) -> Iterable[tuple[str, str]]:
    if "conversations" in columns:
        turns = (row["conversations"] for row in rows)
        return ((str(talk[0]["value"]), str(talk[1]["value"])) for talk in turns if talk and len(talk) > 1)
    names = next((pair for pair in TEXT_COLUMNS if set(pair) <= set(columns)), None)
    if names is None:
        known = "; ".join(" + ".join(pair) for pair in TEXT_COLUMNS)
        raise InputError(
            f"{where}: dataset '{text}' has the columns {', '.join(columns)}; expected conversations, or {known}"
        )
    return ((_plain(row[names[0]]), _plain(row[names[1]])) for row in rows)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _of_lengths(name: str, task: str, lengths: Sequence[tuple[float, ...]], source: str, where: str) -> Workload:
    import numpy as np

    from qplan.profiles.lengths.buckets import bucket

    kept = [pair for pair in lengths if min(pair) >= 1]
    if not kept:
        raise InputError(f"{where}: {name} holds no request with at least one token in and out")
    return Workload.of(name, task, (tuple(row) for row in bucket(np.array(kept)).tolist()), source)
