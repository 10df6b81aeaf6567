from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.core.slo import METRICS, Slo


def test_the_grammar_reads_metric_percentile_and_threshold() -> None:
    assert Slo.parse("ttft=1s") == Slo("ttft", 1.0, None)
    assert Slo.parse("p99:tpot=50ms") == Slo("tpot", 0.05, 99.0)
    assert Slo.parse(" P99.9:E2E = 10 s ") == Slo("e2e", 10.0, 99.9)


def test_several_come_from_one_text_or_many() -> None:
    together = Slo.parse_all(["ttft=1s,p99:tpot=50ms"])
    assert together == Slo.parse_all(["ttft=1s", "p99:tpot=50ms"])


def test_the_default_percentile_fills_only_what_is_open() -> None:
    assert Slo.parse("ttft=1s").at(95).percentile == 95
    assert Slo.parse("p50:ttft=1s").at(95).percentile == 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft=1parsec", "unknown unit 'parsec'"),
        ("tfft=1s", "did you mean 'ttft'"),
        ("ttft", "cannot read 'ttft'"),
        ("p101:ttft=1s", "unknown percentile 'p101'"),
        ("p0:ttft=1s", "unknown percentile"),
        ("mean:ttft=1s", "unknown percentile 'mean'"),
        ("ttft=-1s", "expected more than 0"),
        ("ttft=0", "expected more than 0"),
        ("=1s", "cannot read"),
        ("", "cannot read"),
    ],
)
def test_a_wrong_slo_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--slo: .*{message}"):
        Slo.parse(text)


def test_the_same_percentile_of_a_metric_cannot_be_bound_twice() -> None:
    with pytest.raises(InputError, match="repeats"):
        Slo.parse_all(["ttft=1s", "ttft=2s"])
    assert len(Slo.parse_all(["p50:ttft=1s", "p99:ttft=2s"])) == 2


@given(
    st.sampled_from(METRICS),
    st.integers(1, 9999).map(lambda n: n / 1000),
    st.none() | st.sampled_from([50.0, 90.0, 99.0, 99.9]),
)
def test_a_printed_slo_reads_back(metric: str, threshold_s: float, percentile: float | None) -> None:
    slo = Slo(metric, threshold_s, percentile)
    again = Slo.parse(str(slo))
    assert (again.metric, again.percentile) == (metric, percentile)
    assert again.threshold_s == pytest.approx(threshold_s, rel=6e-3)


@given(st.text(max_size=40))
def test_no_text_makes_the_grammar_fail_otherwise(text: str) -> None:
    try:
        Slo.parse_all([text])
    except InputError as error:
        assert str(error).startswith("--slo: ")
