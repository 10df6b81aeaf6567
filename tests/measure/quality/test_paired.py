import math
import random
from statistics import fmean

import pytest

from qplan.measure.quality.paired import clustered, item_score, mcnemar, student, student_quantile, tango, wilson
from qplan.measure.quality.results import Item


def items(scores: dict[str, float | None]) -> list[Item]:
    return [Item(key, score, error=None if score is not None else "no answer") for key, score in scores.items()]


def test_tango_interval_of_the_published_example() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33:2850 (2014), table: 1 gained, 7 lost, 21 pairs.
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_tango_mirrors_and_keeps_a_width_when_nothing_changed() -> None:
    low, high = tango(3, 5, 30)
    assert tango(5, 3, 30) == pytest.approx((-high, -low))
    low, high = tango(0, 0, 40)
    assert low < -0.05
    assert high == pytest.approx(-low)
    assert tango(40, 0, 40)[1] == pytest.approx(1)


def test_tango_covers() -> None:
    draw = random.Random(3)
    # Of each item: right in both, gained, lost; the true change is 0.15 - 0.05.
    covered = 0
    for _ in range(400):
        outcomes = [draw.random() for _ in range(40)]
        gained = sum(x < 0.15 for x in outcomes)
        lost = sum(0.15 <= x < 0.20 for x in outcomes)
        low, high = tango(gained, lost, 40)
        covered += low <= 0.10 <= high
    assert covered >= 0.92 * 400


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (7, 2.3646), (19, 2.0930), (100, 1.9840), (3000, 1.9608)],
)
def test_student_quantiles_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, rel=3e-3)


def test_student_needs_two_values() -> None:
    assert student([1.0]) == (None, None)
    low, high = student([1.0, 3.0])
    assert low is not None
    assert high is not None
    assert (low, high) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)


def test_groups_that_differ_widen_the_interval() -> None:
    # Equal groups: the interval of their means.
    groups = [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0], [8.0, 9.0, 10.0]]
    assert clustered(groups) == pytest.approx(student([1.0, 5.0, 9.0]))
    draw = random.Random(4)
    mixed = [[draw.gauss(0, 1) for _ in range(200)] for _ in range(30)]
    low, high = clustered(mixed)
    alone = student([value for group in mixed for value in group])
    assert alone[0] is not None
    assert alone[1] is not None
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.4)
    shifted = [[value + number for value in group] for number, group in enumerate(mixed)]
    low, high = clustered(shifted)
    assert high - low > 10 * (alone[1] - alone[0])


def test_wilson_interval_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_pairs_only_items_that_both_have() -> None:
    now = items({"a": 1.0, "b": 0.0, "c": 1.0, "d": None})
    before = items({"a": 1.0, "b": 1.0, "d": 1.0, "e": 0.0})
    score = item_score("accuracy", now, before)
    assert score.items == 3
    assert score.score == pytest.approx(2 / 3)
    assert score.baseline_score == 1.0
    assert score.change == -0.5
    assert score.p_value == 1.0


def test_the_paired_interval_is_narrower_than_two_separate_ones() -> None:
    draw = random.Random(1)
    hardness = [draw.random() for _ in range(50)]
    now = items({str(i): h - 0.02 + draw.gauss(0, 0.01) for i, h in enumerate(hardness)})
    before = items({str(i): h for i, h in enumerate(hardness)})
    score = item_score("rouge_l", now, before)
    assert score.change_low is not None
    assert score.change_high is not None
    assert score.low is not None
    assert score.high is not None
    assert score.change_low < score.change_high < 0
    assert score.high - score.low > 10 * (score.change_high - score.change_low)
    assert score.p_value is None


def test_without_scores_the_reason_remains() -> None:
    score = item_score("accuracy", items({"a": None}), None)
    assert score.score is None
    assert score.reason == "no answer"


def test_items_of_which_the_baseline_has_none_stay_unpaired() -> None:
    score = item_score("accuracy", items({"a": 1.0}), items({"b": 1.0}))
    assert score.score == 1.0
    assert score.change is None


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(5, 5) == 1.0
    assert math.isclose(mcnemar(2, 8), mcnemar(8, 2))
    assert fmean([mcnemar(0, 3), mcnemar(3, 0)]) == pytest.approx(0.25)
