from __future__ import annotations

import json
from pathlib import Path

import pytest

from qplan.core.errors import InputError
from qplan.profiles.workloads import read_workload

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_names_and_lengths_are_read() -> None:
    assert read_workload("Chat").task == "chat"
    assert read_workload("isl=512,osl=128").longest == 640


def test_a_trace_keeps_its_means(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = [(100 + 7 * n % 900, 20 + 11 * n % 300) for n in range(500)]
    path.write_text(HEADER + "".join(f"2026-01-01 00:00:00,{i},{o}\n" for i, o in rows))
    workload = read_workload(str(path))
    assert workload.mean_input_tokens == pytest.approx(sum(i for i, _ in rows) / 500)
    assert workload.mean_output_tokens == pytest.approx(sum(o for _, o in rows) / 500)
    assert len(workload.buckets) <= 48
    assert "500 requests" in workload.source


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column ContextTokens"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "has no column GeneratedTokens"),
        (HEADER, "holds no request"),
        (HEADER + "2026,1,2\n2026,x,2\n", "line 3: ContextTokens is 'x'"),
        (HEADER + "2026,1,-2\n", "line 2: GeneratedTokens is '-2'"),
        (HEADER + "2026,1\n", "line 2: GeneratedTokens is 'None'"),
        (HEADER + "2026,0,0\n", "holds no request"),
    ],
)
def test_a_wrong_trace_names_the_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_workload(str(path))


def test_a_file_that_is_no_text_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(InputError, match="cannot read"):
        read_workload(str(path))


def test_a_local_dataset_counts_characters_as_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "talk.jsonl"
    rows = [{"prompt": "x" * (40 + 8 * n), "completion": "y" * (400 - 4 * n), "id": n} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload = read_workload(str(path))
    assert workload.mean_input_tokens == pytest.approx(sum(40 + 8 * n for n in range(50)) / 50 / 4)
    assert workload.mean_output_tokens == pytest.approx(sum(400 - 4 * n for n in range(50)) / 50 / 4)
    assert "4 characters counted as a token" in workload.source


def test_conversations_are_read_as_first_turn_and_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "talk.json"
    talk = [{"from": "human", "value": "a" * 80}, {"from": "gpt", "value": "b" * 160}, {"from": "human", "value": "c"}]
    path.write_text(json.dumps([{"conversations": talk}, {"conversations": talk[:1]}]))
    workload = read_workload(str(path))
    assert (workload.mean_input_tokens, workload.mean_output_tokens) == (20, 40)


@pytest.mark.parametrize("rows", ['{"a": 1}\n', "{", ""])
def test_a_dataset_without_known_columns_is_an_input_error(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "odd.jsonl"
    path.write_text(rows)
    with pytest.raises(InputError, match="dataset"):
        read_workload(str(path))
