import math

import pytest

from qplan.core.errors import InputError
from qplan.measure.quality.proxy import fit_proxies, fit_proxy


def test_a_line_is_found_and_predicts_each_method_from_the_others() -> None:
    perplexities = [12.3, 12.5, 13.4, 15.5, 18.0, 65.0]
    scores = [0.9 - 0.15 * math.log(p / 12.3) for p in perplexities]
    proxy = fit_proxy(perplexities, scores)
    assert proxy.slope == pytest.approx(-0.15)
    assert proxy.error == pytest.approx(0, abs=1e-12)
    assert proxy.error_of_mean > 0.05
    assert proxy.rank_correlation == pytest.approx(-1)
    assert proxy.predict(30.0) == pytest.approx(0.9 - 0.15 * math.log(30 / 12.3))


def test_a_benchmark_that_does_not_follow_is_not_flattered() -> None:
    proxy = fit_proxy([10, 11, 12, 13, 14, 15], [0.5, 0.7, 0.4, 0.6, 0.7, 0.4])
    assert proxy.error > proxy.error_of_mean


def test_equal_values_share_their_rank() -> None:
    # Spearman with ties, by hand: ranks 1 2 3 4 against 3.5 3.5 1.5 1.5.
    proxy = fit_proxy([1, 2, 3, 4], [0.9, 0.9, 0.1, 0.1])
    assert proxy.rank_correlation == pytest.approx(-2 / math.sqrt(5))
    assert fit_proxy([1, 2, 3, 4], [0.5] * 4).rank_correlation is None


@pytest.mark.parametrize(
    ("perplexities", "scores", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "4 methods or more; there are 3"),
        ([1, 2, 3, 4], [1, 2, 3], "4 perplexities, but 3 scores"),
        ([5, 5, 5, 9], [1, 2, 3, 4], "different perplexity"),
    ],
)
def test_too_little_to_fit(perplexities: list[float], scores: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_proxy(perplexities, scores)


def quality_row(quantization: str, task: str, metric: str, score: float, **columns: str) -> dict[str, object]:
    return {
        "model": "m",
        "quantization": quantization,
        "engine": "llamacpp",
        "phase": "quality",
        "status": "ok",
        "task": task,
        "metric": metric,
        "score": score,
    } | columns


def test_proxies_from_observations_average_repeats_and_skip_what_is_too_few() -> None:
    rows = []
    for name, perplexity, score in (("F16", 12, 0.8), ("Q8_0", 12.5, 0.8), ("Q4_0", 16, 0.7), ("Q2_K", 65, 0.3)):
        rows += [
            quality_row(name, "perplexity:english", "perplexity", perplexity),
            quality_row(name, "perplexity:english", "kl_divergence", 0.1),
            quality_row(name, "choice:sample", "accuracy", score - 0.1),
            quality_row(name, "choice:sample", "accuracy", score + 0.1),
            quality_row(name, "choice:sample", "accuracy", 99.0, status="failed"),
        ]
    rows += [quality_row("F16", "math:sample", "exact_match", 0.5)]
    proxies = fit_proxies(rows)
    assert list(proxies) == [("m", "choice:sample", "accuracy")]
    expected = fit_proxy([12, 12.5, 16, 65], [0.8, 0.8, 0.7, 0.3])
    assert proxies["m", "choice:sample", "accuracy"].slope == pytest.approx(expected.slope)
