"""The bucketing of length distributions, and the shipped result of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qplan.core.workload import Workload
from qplan.profiles.lengths import __main__ as command
from qplan.profiles.lengths.buckets import INPUT_EDGES, OUTPUT_EDGES, bucket
from qplan.profiles.lengths.news import ARTICLE_LOG_STD, ARTICLE_TOKENS, news


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Return the smallest value that at least `share` of the weight does not exceed."""
    order = np.argsort(values)
    reached = np.searchsorted(np.cumsum(weights[order]), share * weights.sum() * (1 - 1e-12))
    return float(values[order][min(reached, len(values) - 1)])


def correlated_lengths(requests: int = 5_000) -> np.ndarray:
    rng = np.random.default_rng(7)
    prompts = rng.lognormal(5, 1, requests)
    completions = prompts**0.5 * rng.lognormal(2, 0.7, requests)
    return np.column_stack([prompts, completions]).astype(int) + 1


def test_buckets_keep_means_and_requests_exactly() -> None:
    lengths = correlated_lengths()
    rows = bucket(lengths)
    assert rows[:, 2].sum() == len(lengths)
    np.testing.assert_allclose(rows[:, 2] @ rows[:, :2] / len(lengths), lengths.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("column", [0, 1])
def test_buckets_keep_the_marginal_quantiles(share: float, column: int) -> None:
    lengths = correlated_lengths()
    rows = bucket(lengths)
    true = np.quantile(lengths[:, column], share, method="inverted_cdf")
    assert weighted_quantile(rows[:, column], rows[:, 2], share) == pytest.approx(true, rel=0.1)


def test_a_marginal_quantile_cannot_leave_its_bin() -> None:
    lengths = correlated_lengths()
    rows = bucket(lengths)
    for column, edges in ((0, INPUT_EDGES), (1, OUTPUT_EDGES)):
        low, high = max(e for e in edges if e < 0.9), min(e for e in edges if e > 0.9)
        bounds = np.quantile(lengths[:, column], [low, high], method="inverted_cdf")
        assert bounds[0] <= weighted_quantile(rows[:, column], rows[:, 2], 0.9) <= bounds[1]


def test_buckets_keep_the_correlation() -> None:
    lengths = correlated_lengths()
    rows = bucket(lengths)
    kept = np.cov(rows[:, :2].T, fweights=rows[:, 2].astype(int))[0, 1]
    assert kept == pytest.approx(np.cov(lengths.T)[0, 1], rel=0.1)
    shuffled = np.column_stack([lengths[:, 0], np.random.default_rng(1).permutation(lengths[:, 1])])
    rows = bucket(shuffled)
    assert abs(np.cov(rows[:, :2].T, fweights=rows[:, 2].astype(int))[0, 1]) < 0.1 * kept


def test_buckets_are_at_most_48() -> None:
    assert (len(INPUT_EDGES) - 1) * (len(OUTPUT_EDGES) - 1) <= 48
    assert len(bucket(correlated_lengths(50_000))) <= 48


def test_equal_requests_make_one_bucket() -> None:
    assert bucket(np.full((20, 2), (512, 128))).tolist() == [[512, 128, 20]]


def test_one_request_is_its_own_bucket() -> None:
    assert bucket(np.array([[3, 4]])).tolist() == [[3, 4, 1]]


@pytest.mark.parametrize("lengths", [np.empty((0, 2), int), np.array([1, 2, 3]), np.ones((4, 3), int)])
def test_lengths_of_another_shape_are_refused(lengths: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \(requests, 2\)"):
        bucket(lengths)


def test_weighted_quantile_is_the_smallest_value_that_reaches_the_share() -> None:
    values, weights = np.array([30.0, 10.0, 20.0]), np.array([1.0, 8.0, 1.0])
    assert [weighted_quantile(values, weights, share) for share in (0.5, 0.8, 0.81, 0.9, 1.0)] == [
        10,
        10,
        20,
        20,
        30,
    ]


def test_news_articles_match_the_published_figures() -> None:
    lengths = news(200_000, seed=3)
    articles = lengths[:, 0] - 10
    assert articles.mean() == pytest.approx(ARTICLE_TOKENS, rel=0.01)
    assert np.minimum(articles, 800).mean() == pytest.approx(599, rel=0.01)
    assert np.log(articles).std() == pytest.approx(ARTICLE_LOG_STD, rel=0.01)
    assert lengths.min() >= 1


def test_rendered_workloads_read_back_and_hold_a_bucket_a_line() -> None:
    workloads = command.document({"chat": [[5, 6], [50, 60]], "code": [[7, 8]]})
    text = command.rendered(workloads)
    assert json.loads(text) == workloads
    lines = sum(len(workload["buckets"]) for workload in workloads.values())
    assert sum(line.lstrip().startswith("[") for line in text.splitlines()) == lines


def test_the_shipped_news_mix_is_what_the_command_makes() -> None:
    made = command.document({"chat": [[5, 6]], "code": [[7, 8]]})["summarization"]
    shipped = Workload.named("summarization")
    assert shipped is not None
    assert [b.input_tokens for b in shipped.buckets] == [row[0] for row in made["buckets"]]
    assert "approximated from published statistics" in shipped.source


@pytest.mark.parametrize(
    ("name", "samples", "mean_input", "mean_output"),
    [("chat", 15_502, 218.52, 200.82), ("code", 164, 131.29, 53.85)],
)
def test_the_shipped_mixes_keep_what_was_counted(
    name: str, samples: int, mean_input: float, mean_output: float
) -> None:
    workload = Workload.named(name)
    assert workload is not None
    assert workload.mean_input_tokens == pytest.approx(mean_input, abs=0.01)
    assert workload.mean_output_tokens == pytest.approx(mean_output, abs=0.01)
    assert min(bucket.weight for bucket in workload.buckets) * samples >= 1 - 1e-9
    assert len(workload.buckets) <= 48
