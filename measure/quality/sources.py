"""Where a task's items come from: the samples that ship, a local file, or a public dataset by name.

Items are JSON objects with the fields of their family:

============  ==========================================
perplexity    ``text``
choice        ``question``, ``options``, ``answer`` (index of the right option)
math          ``question``, ``answer`` (a number)
instructions  ``instruction``, ``checks`` (:mod:`qplan.measure.quality.constraints`)
summaries     ``text``, ``summary``
============  ==========================================

and an ``id``; without one they are numbered.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError, MeasurementError, nearest

Load = Callable[[], Sequence[Mapping[str, Any]]]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "perplexity": ("text",),
    "choice": ("question", "options", "answer"),
    "math": ("question", "answer"),
    "instructions": ("instruction", "checks"),
    "summaries": ("text", "summary"),
}
"""Fields of an item, by family of tasks."""

SAMPLES: Mapping[str, Mapping[str, str]] = {
    "perplexity": {"english": "sample_english.json"},
    "choice": {"sample": "sample_choice.json"},
    "math": {"sample": "sample_math.json"},
    "instructions": {"sample": "sample_instructions.json"},
    "summaries": {"sample": "sample_summaries.json"},
}
"""What ships, by family and name."""

PASSAGE_CHARACTERS = 1500
"""Length of the passages that a text file is cut into: some 350 tokens."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A public dataset: how it is loaded, and how a row of it becomes an item."""

    path: str
    configuration: str
    split: str
    item: Callable[[Mapping[str, Any]], dict[str, Any]]


def _mmlu(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "options": list(row["choices"]), "answer": int(row["answer"])}


def _truthfulqa(row: Mapping[str, Any]) -> dict[str, Any]:
    targets = row["mc1_targets"]
    options, right = list(targets["choices"]), list(targets["labels"]).index(1)
    # The right one always comes first there; where letters are asked for, that would reward a model that says A.
    place = zlib.crc32(row["question"].encode()) % len(options)
    options.insert(place, options.pop(right))
    return {"question": row["question"], "options": options, "answer": place}


def _gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answer": float(row["answer"].rpartition("####")[2].strip().replace(",", ""))}


def _cnn_dailymail(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "text": row["article"], "summary": row["highlights"]}


HUB: Mapping[str, Mapping[str, HubDataset]] = {
    "perplexity": {
        "wikitext": HubDataset(
            "Salesforce/wikitext", "wikitext-2-raw-v1", "test", lambda row: {"text": str(row["text"])}
        )
    },
    "choice": {
        "mmlu": HubDataset("cais/mmlu", "all", "test", _mmlu),
        "truthfulqa": HubDataset("truthfulqa/truthful_qa", "multiple_choice", "validation", _truthfulqa),
    },
    "math": {"gsm8k": HubDataset("openai/gsm8k", "main", "test", _gsm8k)},
    "instructions": {},
    "summaries": {"cnn_dailymail": HubDataset("abisee/cnn_dailymail", "3.0.0", "test", _cnn_dailymail)},
}
"""Public datasets by family and name."""


def find_items(family: str, name: str, limit: int | None = None, where: str = "task") -> Load:
    """Return what loads the items called `name`, the first `limit` of them; nothing is read yet.

    Parameters
    ----------
    family
        One of :data:`FIELDS`.
    name
        A sample, a public dataset, or the path of a file: JSON Lines, or plain text for perplexity.
    where
        Names the flag or file and line in an error.

    Raises
    ------
    InputError
        There is no such sample, dataset or file.
    """
    if name in SAMPLES[family]:
        return lambda: _checked(family, _sample(SAMPLES[family][name]), limit, name)
    if name in HUB[family]:
        return lambda: _checked(family, _from_hub(family, name), limit, name)
    path = Path(name).expanduser()
    if path.is_file():
        return lambda: _checked(family, _from_file(family, path), limit, path.name)
    choices = [*SAMPLES[family], *HUB[family]]
    raise InputError(f"{where}: no items '{name}' for {family}; expected one of {', '.join(choices)}, or the path of a "
                     f"file{nearest(name, choices)}")  # fmt: skip


def passages(text: str, length: int = PASSAGE_CHARACTERS) -> list[str]:
    """Cut a text into passages of at least `length` characters (the last one: half of that), ended by a sentence."""
    found: list[str] = []
    current = ""
    for piece in re.split(r"(?<=[.!?])\s+|\n{2,}", text):
        current = f"{current} {piece}".strip()
        if len(current) >= length:
            found.append(current)
            current = ""
    if len(current) >= length / 2 or not found:
        found.append(current)
    return found


def _checked(
    family: str, items: Iterable[Mapping[str, Any]], limit: int | None, name: str
) -> Sequence[Mapping[str, Any]]:
    """Return the first items, those without a name numbered; one that lacks a field is refused."""
    checked: list[Mapping[str, Any]] = []
    for number, item in enumerate(items):
        if limit is not None and number >= limit:
            break
        if not isinstance(item, Mapping):
            raise InputError(f"{name}, item {number + 1}: expected a JSON object")
        for field in FIELDS[family]:
            if field not in item:
                raise InputError(f"{name}, item {number + 1}: no field '{field}'; {family} items have "
                                 f"{', '.join(FIELDS[family])}")  # fmt: skip
        checked.append({"id": f"{name}-{number}", **item})
    if not checked:
        raise InputError(f"{name}: no items")
    return checked


def _sample(file: str) -> Any:
    return json.loads((files("qplan.measure.quality") / file).read_text(encoding="utf-8"))["items"]


def _from_file(family: str, path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if path.suffix.casefold() != ".jsonl":
        if family != "perplexity":
            raise InputError(f"{path}: {family} items are read from JSON Lines (.jsonl)")
        return [{"text": passage} for passage in passages(text)]
    items: list[Mapping[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                items.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: no JSON: {error}") from None
    return items


def _from_hub(family: str, name: str) -> Iterable[dict[str, Any]]:
    """Load a public dataset through the library `datasets`."""
    wanted = HUB[family][name]
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name} is read through the library datasets: pip install 'qplan[datasets]'") from None
    try:
        rows = datasets.load_dataset(wanted.path, wanted.configuration, split=wanted.split)
    except Exception as error:  # the library lets any exception of its network and file layers through
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise MeasurementError(f"the dataset {wanted.path} ({name}) cannot be loaded: {why}") from None
    items = (wanted.item(row) for row in rows)
    if family == "perplexity":
        return [{"text": passage} for passage in passages("".join(item["text"] for item in items))]
    return items
