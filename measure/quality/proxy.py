"""Is perplexity a good proxy for a benchmark? A line through several methods' results, and its honest error.

The second study (arXiv 2402.16775) reports that it is, for most benchmarks. Here score = a + b log(perplexity) is
fitted by least squares over quantization methods, and judged by predicting each method from the others: a proxy is
worth something only if it beats predicting the others' mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean, linear_regression
from typing import Any

from qplan.core.errors import InputError
from qplan.measure.quality.dimensions import DEPLOYMENT

MIN_METHODS = 4


@dataclass(frozen=True, slots=True)
class Proxy:
    """How a benchmark follows perplexity.

    Attributes
    ----------
    methods
        How many points the line rests on.
    rank_correlation
        Spearman's; ``None`` when one of the two never changes. Near -1 for a good proxy of a score that should be high.
    intercept, slope
        Of score = intercept + slope log(perplexity).
    error
        Mean absolute error when each method is predicted from the others, in the score's unit.
    error_of_mean
        The same for predicting the mean of the others: what knows no perplexity.
    """

    methods: int
    rank_correlation: float | None
    intercept: float
    slope: float
    error: float
    error_of_mean: float

    def predict(self, perplexity: float) -> float:
        """Return the score that the line gives."""
        return self.intercept + self.slope * math.log(perplexity)


def fit_proxy(perplexities: Sequence[float], scores: Sequence[float]) -> Proxy:
    """Fit a benchmark's score to perplexity, one pair a method of the same model.

    Raises
    ------
    InputError
        There are fewer than :data:`MIN_METHODS` methods, or all have one perplexity.
    """
    logs = [math.log(perplexity) for perplexity in perplexities]
    if len(logs) != len(scores):
        raise InputError(f"{len(logs)} perplexities, but {len(scores)} scores")
    if len(logs) < MIN_METHODS:
        raise InputError(f"a proxy needs results of {MIN_METHODS} methods or more; there are {len(logs)}")
    folds = [([*logs[:i], *logs[i + 1 :]], [*scores[:i], *scores[i + 1 :]]) for i in range(len(logs))]
    if any(len(set(others)) == 1 for others, _ in folds):
        raise InputError("a proxy needs methods of different perplexity")
    lines = [linear_regression(others, theirs) for others, theirs in folds]
    whole = linear_regression(logs, scores)
    constant = len(set(scores)) == 1
    return Proxy(
        methods=len(logs),
        rank_correlation=None if constant else correlation(_ranks(logs), _ranks(scores)),
        intercept=whole.intercept,
        slope=whole.slope,
        error=fmean(
            abs(line.intercept + line.slope * log - score) for line, log, score in zip(lines, logs, scores, strict=True)
        ),
        error_of_mean=fmean(abs(fmean(theirs) - score) for (_, theirs), score in zip(folds, scores, strict=True)),
    )


def fit_proxies(
    rows: Iterable[Mapping[str, Any]], text: str = "perplexity:english"
) -> dict[tuple[str, str, str], Proxy]:
    """Fit every benchmark of every model to the perplexity on one text, from observations.

    Parameters
    ----------
    rows
        Observations as rows that map column names to values; repeats of a deployment are averaged.
    text
        Task of the perplexity.

    Returns
    -------
    dict
        Proxies by model, task and metric, of those that enough methods were measured for.
    """
    seen: dict[tuple[str, str, str], dict[tuple[Any, ...], list[float]]] = {}
    for row in rows:
        if row.get("phase") == "quality" and row.get("status") == "ok" and row.get("score") is not None:
            benchmark = (row["model"], row["task"], row["metric"])
            deployment = tuple(row.get(name) for name in DEPLOYMENT)
            seen.setdefault(benchmark, {}).setdefault(deployment, []).append(row["score"])
    proxies = {}
    for (model, task, metric), scores in seen.items():
        perplexities = seen.get((model, text, "perplexity"), {})
        both = [deployment for deployment in scores if deployment in perplexities]
        if task.startswith("perplexity:") or len(both) < MIN_METHODS:
            continue
        pairs = [(fmean(perplexities[deployment]), fmean(scores[deployment])) for deployment in both]
        if len({perplexity for perplexity, _ in pairs}) >= MIN_METHODS:
            proxies[model, task, metric] = fit_proxy(*zip(*pairs, strict=True))
    return proxies


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank values from 1; equal ones share the mean of their ranks."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
