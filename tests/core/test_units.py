from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.core.units import format_duration, parse_duration, parse_fraction, parse_rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("50ms", 0.05), ("2", 2.0), ("1.5 min", 90.0), ("300us", 3e-4), ("1e3MS", 1.0), (".5h", 1800.0)],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, "--slo") == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "rate"), [("40", 40.0), ("40qps", 40.0), ("90/min", 1.5), ("7 rps", 7.0)])
def test_a_rate_is_read_as_requests_per_second(text: str, rate: float) -> None:
    assert parse_rate(text, "--qps") == pytest.approx(rate)


@pytest.mark.parametrize(("text", "share"), [("99%", 0.99), ("0.99", 0.99), ("101 %", 1.01)])
def test_a_share_is_read_with_or_without_percent(text: str, share: float) -> None:
    assert parse_fraction(text, "--quality") == pytest.approx(share)


def test_an_unknown_unit_names_the_flag_and_the_nearest_unit() -> None:
    with pytest.raises(InputError, match=r"--slo: unknown unit 'mss' in '5mss'.*did you mean 'ms'"):
        parse_duration("5mss", "--slo")


@pytest.mark.parametrize("text", ["", "s", "one second", "1parsec", "nan", "inf", "1e999s", "--1", "1s1s"])
def test_what_is_no_duration_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="--slo"):
        parse_duration(text, "--slo")


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_printed_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds), "x") == pytest.approx(seconds, rel=6e-3)


@given(st.text(max_size=30))
def test_no_text_makes_a_parser_fail_otherwise(text: str) -> None:
    for parse in (parse_duration, parse_rate, parse_fraction):
        try:
            assert math.isfinite(parse(text, "--flag"))
        except InputError as error:
            assert "--flag" in str(error)
