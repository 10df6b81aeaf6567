import math

import numpy as np
import pytest

from qplan.models.intervals.quantile import conformal_quantile


def test_rank_counts_the_case_to_come() -> None:
    scores = np.arange(1.0, 20.0)[::-1]  # 19 scores: 0.9 of 20 cases is the 18th
    assert conformal_quantile(scores, 0.9) == 18
    assert conformal_quantile(scores, 0.95) == 19


def test_too_few_scores_bound_nothing() -> None:
    assert conformal_quantile(np.arange(8.0), 0.9) == math.inf
    assert conformal_quantile(np.arange(9.0), 0.9) == 8
    assert conformal_quantile(np.array([]), 0.5) == math.inf


def test_each_group_weighs_the_same() -> None:
    many = np.zeros(1000)
    scores = np.concatenate([many, np.arange(1.0, 10.0)])
    groups = np.concatenate([np.zeros(1000, dtype=int), np.arange(1, 10)])
    # Ten groups and one to come: half of it is reached at the sixth group, though 99 % of the scores are 0.
    assert conformal_quantile(scores, 0.5, groups) == 5
    assert conformal_quantile(scores, 0.5) == 0


def test_few_groups_bound_nothing_however_many_rows() -> None:
    groups = np.repeat(np.arange(8), 100)
    assert conformal_quantile(np.ones(800), 0.9, groups) == math.inf
    assert conformal_quantile(np.ones(900), 0.9, np.repeat(np.arange(9), 100)) == 1


@pytest.mark.parametrize("cases", [15, 40])
def test_coverage_is_at_least_as_promised_on_average(cases: int) -> None:
    rng = np.random.default_rng(3)
    inside = [rng.standard_cauchy() <= conformal_quantile(rng.standard_cauchy(cases), 0.8) for _ in range(4000)]
    # The exact chance is ceil(0.8 (n + 1)) / (n + 1); three standard errors of 4,000 draws are 0.019.
    assert np.mean(inside) == pytest.approx(math.ceil(0.8 * (cases + 1)) / (cases + 1), abs=0.019)


def test_a_new_group_is_covered_where_rows_inside_groups_are_alike() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(30), rng.integers(1, 15, 30))
    inside = []
    for _ in range(2000):
        size = rng.exponential(size=31)
        inside.append(size[30] <= conformal_quantile(size[groups], 0.9, groups))
    assert np.mean(inside) >= 0.88
