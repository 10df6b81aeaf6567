import json
from typing import Any

import pytest

from qplan.core.errors import InputError, StoreError
from qplan.models.intervals.support import Support


@pytest.fixture
def support() -> Support:
    return Support.of(
        {
            "gpu": ["a100", "a100", "a100", "h100", "h100"],
            "model": ["llama-2-7b", "llama-2-7b", "llama-2-13b", "llama-2-7b", "llama-2-70b"],
            "quantization": ["BF16", "W4A16", "BF16", "BF16", "W8A8-FP"],
            "tp": [1, 2, 4, 1, 8],
            "rate_qps": [1.0, 2.0, 8.0, 1.0, 64.0],
        }
    )


def test_inside_is_silent(support: Support) -> None:
    verdict = support.check({"gpu": "a100", "model": "llama-2-7b", "quantization": "W4A16", "tp": 2, "rate_qps": 8.0})
    assert (verdict.warnings, verdict.refusals) == ((), ())
    verdict.require()


def test_a_number_outside_the_range_of_its_gpu_warns(support: Support) -> None:
    assert support.check({"gpu": "a100", "tp": 8}).warnings == ("tp=8 was never measured for gpu=a100; seen 1-4",)
    assert not support.check({"gpu": "h100", "tp": 8}).warnings
    assert not support.check({"gpu": "a100", "tp": 8}).refusals


@pytest.mark.parametrize(("rate", "refused"), [(32.0, False), (33.0, True), (0.25, False), (0.2, True), (0.0, True)])
def test_a_number_far_outside_is_refused(support: Support, rate: float, refused: bool) -> None:
    verdict = support.check({"gpu": "a100", "rate_qps": rate})
    assert bool(verdict.refusals) == refused
    assert bool(verdict.warnings) != refused
    if refused:
        with pytest.raises(InputError, match=r"rate_qps=.* seen 1-8: refused beyond 4 times the range"):
            verdict.require()


def test_a_name_never_seen_warns_with_the_nearest(support: Support) -> None:
    (warning,) = support.check({"gpu": "a100", "model": "llama-2-17b"}).warnings
    assert warning.startswith(
        "model=llama-2-17b was never measured; seen: llama-2-13b, llama-2-70b, llama-2-7b; did you"
    )


def test_a_name_never_seen_on_this_gpu_warns(support: Support) -> None:
    (warning,) = support.check({"gpu": "a100", "quantization": "W8A8-FP"}).warnings
    assert warning == "quantization=W8A8-FP was never measured on a100; seen there: BF16, W4A16"


def test_a_new_gpu_is_judged_by_all_rows(support: Support) -> None:
    verdict = support.check({"gpu": "h200", "tp": 8, "quantization": "W8A8-FP", "rate_qps": 100.0})
    assert [sentence.split(" ")[0] for sentence in verdict.warnings] == ["gpu=h200", "rate_qps=100"]
    assert not verdict.refusals


def test_two_new_names_are_refused(support: Support) -> None:
    verdict = support.check({"gpu": "mi300", "model": "qwen-72b"})
    assert "too little is alike" in verdict.refusals[0]


def test_ranges_that_touch_zero_warn(support: Support) -> None:
    zero = Support.of({"gpu": ["a100"], "wait_s": [0.0]})
    verdict = zero.check({"gpu": "a100", "wait_s": 3.0})
    assert verdict.warnings == ("wait_s=3 was never measured for gpu=a100; seen 0",)
    assert not verdict.refusals


def test_reads_back_what_it_wrote(support: Support) -> None:
    again = Support.from_data(json.loads(json.dumps(support.to_data())))
    queries: list[dict[str, str | float]] = [
        {"gpu": "a100", "tp": 8},
        {"gpu": "mi300", "model": "x"},
        {"gpu": "h100", "rate_qps": 1e6},
    ]
    for query in queries:
        assert again.check(query) == support.check(query)


@pytest.mark.parametrize(
    "data", [None, {}, {"within": "gpu", "names": {}, "ranges": {}}, {"within": 1, "names": [], "ranges": {}}]
)
def test_foreign_data_is_told(data: Any) -> None:
    with pytest.raises(StoreError, match="support: not what was saved"):
        Support.from_data(data)


def test_rows_without_the_column_are_told() -> None:
    with pytest.raises(InputError, match="no rows with a column 'gpu'"):
        Support.of({"tp": [1, 2]})
