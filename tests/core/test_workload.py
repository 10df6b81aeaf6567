from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.core.workload import LengthBucket, Workload


@pytest.mark.parametrize("name", Workload.names())
def test_a_named_mix_is_a_distribution(name: str) -> None:
    workload = Workload.named(name)
    assert workload is not None
    assert sum(bucket.weight for bucket in workload.buckets) == pytest.approx(1)
    assert len(workload.buckets) <= 48
    assert workload.source


def test_chat_answers_are_long_and_summaries_short() -> None:
    chat, summarization = Workload.named("chat"), Workload.named("Summarization")
    assert chat is not None
    assert summarization is not None
    assert chat.mean_output_tokens > summarization.mean_output_tokens
    assert chat.mean_input_tokens < summarization.mean_input_tokens


def test_fixed_lengths_are_one_bucket() -> None:
    workload = Workload.fixed("osl=128, isl=512")
    assert workload.buckets == (LengthBucket(512, 128, 1.0),)
    assert workload.longest == 640


@pytest.mark.parametrize(
    "text", ["isl=512", "isl=0,osl=1", "isl=1.5,osl=2", "isl=1,isl=2", "isl=,osl=3", "isl=nan,osl=1", "los=1,isl=2"]
)
def test_wrong_lengths_are_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="--workload"):
        Workload.fixed(text)


def test_weights_are_normalised() -> None:
    workload = Workload.of("x", "chat", [(10, 20, 1), (30, 40, 3)], "test")
    assert [bucket.weight for bucket in workload.buckets] == [0.25, 0.75]
    assert workload.mean_input_tokens == 25


@pytest.mark.parametrize("buckets", [[], [(0, 1, 1)], [(1, 1, -1)], [(float("nan"), 1, 1)]])
def test_an_impossible_mix_is_an_input_error(buckets: list[tuple[float, float, float]]) -> None:
    with pytest.raises(InputError, match="workload x"):
        Workload.of("x", "chat", buckets, "test")


@given(st.text(max_size=40))
def test_no_text_makes_the_grammar_fail_otherwise(text: str) -> None:
    try:
        Workload.fixed(text)
    except InputError as error:
        assert str(error).startswith("--workload: ")
