"""Bounds on latency and quality at a confidence."""

from __future__ import annotations

from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.core.slo import Slo
from qplan.models.quality import Quality
from qplan.solvers.fleet.confidence import surely, tightened, upper_ratio

KNOWN: dict[str, Any] = {
    "coverage": 0.9,
    "measured_over_predicted": {
        "ttft": {"lower": 1.2, "median": 2.0, "upper": 8.0},
        "tpot": {"lower": 0.7, "median": 0.9, "upper": 1.2},
    },
}


def test_the_ratio_meets_what_the_card_says() -> None:
    assert upper_ratio("ttft", KNOWN, 0.5) == pytest.approx(2.0)
    assert upper_ratio("ttft", KNOWN, 0.95) == pytest.approx(8.0)
    assert upper_ratio("tpot", KNOWN, 0.95) == pytest.approx(1.2)
    assert upper_ratio("itl", KNOWN, 0.95) == pytest.approx(1.2)
    assert upper_ratio("e2e", KNOWN, 0.95) == pytest.approx(8.0)


def test_it_rises_with_the_confidence_and_never_loosens() -> None:
    ratios = [upper_ratio("tpot", KNOWN, p) for p in (0.5, 0.7, 0.9, 0.99)]
    assert ratios == sorted(ratios)
    assert ratios[0] == 1.0  # though the median is below the prediction
    (slo,) = tightened([Slo("ttft", 1.0, 90.0)], KNOWN, 0.95)
    assert slo == Slo("ttft", 0.125, 90.0)


def test_an_unknown_error_bounds_nothing() -> None:
    with pytest.raises(InputError, match=r"--confidence: the error of these profiles .* is not known"):
        upper_ratio("ttft", None, 0.9)


def test_quality_goes_down_to_its_lower_end() -> None:
    grade = Quality(0.98, 0.95, 1.0, "published", "a table", 0.9)
    assert surely(grade, 0.5) == pytest.approx(0.98)
    assert surely(grade, 0.95) == pytest.approx(0.95)
    assert surely(grade, 0.99) < 0.95
