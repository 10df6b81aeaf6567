"""Replay of recorded traffic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.measure.load.prompts import Vocabulary
from qplan.measure.load.traces import BLOCK_TOKENS, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,48,10
2023-11-16 18:17:04.0319600,31,8
2023-11-16 18:17:04.2319600,5,0
2023-11-16 18:17:06.0319600,7,3
"""


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    trace = read_trace(path)
    np.testing.assert_allclose(trace.times_s, [0, 0.052, 2.052], atol=1e-6)
    assert trace.output_tokens.tolist() == [10, 8, 3]
    np.testing.assert_allclose(trace.schedule(4.0), trace.times_s / 4)
    assert [prompt.input_tokens for prompt in trace.prompts(Vocabulary(overhead=1))] == [48, 31, 7]
    assert len(trace.first(1.0)) == 2
    with pytest.raises(InputError, match="speed-up"):
        trace.schedule(0)


def test_mooncake_prompts_share_what_their_blocks_share(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [1, 9]},
        {"timestamp": 0, "input_length": 1000, "output_length": 4, "hash_ids": [1, 2]},
        {"timestamp": 4500, "input_length": 600, "output_length": 6, "hash_ids": [7, 2]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    trace = read_trace(path)
    assert trace.times_s.tolist() == [0, 3, 4.5]
    prompts = trace.prompts(Vocabulary(overhead=1), seed=1)
    assert [prompt.input_tokens for prompt in prompts] == [1000, 700, 600]
    words = [str(prompt.content).split() for prompt in prompts]
    assert [len(text) for text in words] == [1000, 700, 600]  # the first word is in the overhead
    assert words[0][:BLOCK_TOKENS] == words[1][:BLOCK_TOKENS]
    assert words[0][BLOCK_TOKENS + 1 :] != words[1][BLOCK_TOKENS + 1 :]
    assert words[0][1:20] != words[2][1:20]
    assert len(trace.first(1.0).prompts()) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens\n", "no column GeneratedTokens"),
        ("a.csv", "ContextTokens,GeneratedTokens\n3,4\n", "no column TIMESTAMP"),
        ("a.csv", AZURE + "yesterday,3,4\n", "line 6: TIMESTAMP is 'yesterday'"),
        ("a.csv", AZURE + "2023-11-16 18:17:06,many,4\n", "line 6: ContextTokens is 'many'"),
        ("a.csv", AZURE.splitlines()[0] + "\n", "no request"),
        ("a.jsonl", '{"timestamp": 1}\n', "line 1: expected a JSON object"),
        ("a.jsonl", "[]\n", "line 1: expected a JSON object"),
        ("a.jsonl", "\n{", "line 2"),
        ("a.txt", "", "neither .csv"),
    ],
)
def test_bad_traces_are_one_clear_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_trace(tmp_path / name)
    with pytest.raises(InputError, match="no file"):
        read_trace(tmp_path / "none.csv")
