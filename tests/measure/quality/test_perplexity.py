import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.measure.quality import from_json, to_json
from qplan.measure.quality.perplexity import Perplexity, least_divergence, whole_divergence
from qplan.measure.quality.results import TaskResult
from qplan.measure.quality.scoring import LlamaCppScorer, Scorer, TokenScores
from qplan.measure.quality.subject import Subject

PASSAGES = (
    {"id": "a", "text": "The harbour wakes before the town does. At four in the morning the first engines cough."},
    {"id": "b/c", "text": "Bread needs four things: flour, water, salt and time. The first three can be bought."},
)


class Scored(Subject):
    """A subject whose scorer is given."""

    def __init__(self, scorer: Scorer | str, keep: Path | None = None) -> None:
        from qplan.measure.endpoint import Endpoint

        super().__init__(Endpoint("http://127.0.0.1:9", "none"), keep=keep)
        self._scorer = scorer


class Top:
    """A scorer whose distributions over four tokens are drawn from a seed, and whose two most probable are told."""

    whole = False

    def __init__(self, seed: int, spread: float) -> None:
        self._seed, self._spread = seed, spread

    def score(self, text: str, save: Path | None = None) -> TokenScores:
        draw, noise = random.Random(text), random.Random(self._seed)
        tokens, logprobs, top1, tops = [], [], [], []
        for _ in range(200):
            weights = [math.exp(draw.gauss(0, 1) + noise.gauss(0, self._spread)) for _ in range(4)]
            place = {str(i): math.log(w / sum(weights)) for i, w in enumerate(weights)}
            tokens.append("0")
            logprobs.append(place["0"])
            ranked = sorted(place, key=lambda token: -place[token])
            top1.append(ranked[0])
            tops.append({token: place[token] for token in {*ranked[:2], "0"}})
        return TokenScores(tuple(tokens), tuple(logprobs), tuple(top1), tuple(tops))

    def close(self) -> None:
        pass


def run(scorer: Scorer | str, baseline: tuple[TaskResult, ...] = (), keep: Path | None = None) -> TaskResult:
    return Perplexity("perplexity:test", lambda: PASSAGES).run(Scored(scorer, keep), baseline)


def stored(result: TaskResult) -> tuple[TaskResult, ...]:
    """Return a baseline as it comes back from a file."""
    return from_json(to_json([result]))


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    result = run(Top(0, 0.0))
    logprobs = [value for item in result.items for value in item.detail["logprobs"]]
    score = result.score("perplexity")
    assert score.items == len(logprobs) == 400
    assert score.score == pytest.approx(math.exp(-sum(logprobs) / 400))
    assert None not in (score.low, score.score, score.high)
    assert score.low < score.score < score.high  # type: ignore[operator]
    assert [s.metric for s in result.scores] == ["perplexity"]


def test_the_same_model_does_not_differ_from_itself() -> None:
    result = run(Top(0, 0.0), stored(run(Top(0, 0.0))))
    assert result.score("perplexity").change == 0
    assert result.score("kl_divergence_lower_bound").score == 0
    assert result.score("top1_agreement").score == 1


def test_noise_is_seen_where_two_separate_intervals_would_not_show_it() -> None:
    baseline = run(Top(0, 0.0))
    result = run(Top(1, 0.1), stored(baseline))
    perplexity, divergence = result.score("perplexity"), result.score("kl_divergence_lower_bound")
    assert perplexity.baseline_score == pytest.approx(baseline.score("perplexity").score)
    assert perplexity.change_low is not None
    assert perplexity.change_high is not None
    assert perplexity.high is not None
    assert perplexity.low is not None
    assert perplexity.change_high - perplexity.change_low < 0.2 * (perplexity.high - perplexity.low)
    assert divergence.score is not None
    assert divergence.low is not None
    assert 0 < divergence.low < divergence.score
    agreement = result.score("top1_agreement")
    assert agreement.score is not None
    assert 0.8 < agreement.score < 1
    assert agreement.change == pytest.approx(agreement.score - 1)


def test_another_tokenizer_is_no_baseline() -> None:
    class Longer(Top):
        def score(self, text: str, save: Path | None = None) -> TokenScores:
            s = super().score(text)
            return TokenScores((*s.tokens[1:], "1"), s.logprobs, s.top1, s.top)

    result = run(Longer(0, 0.0), stored(run(Top(0, 0.0))))
    assert result.score("kl_divergence").score is None
    assert "other tokens" in str(result.score("kl_divergence").reason)
    assert result.score("perplexity").change is None


def test_without_log_probabilities_there_is_a_reason_and_no_number() -> None:
    result = run("the server gives none")
    assert [(s.metric, s.score, s.reason) for s in result.scores] == [("perplexity", None, "the server gives none")]


def test_a_baseline_of_another_method_is_refused() -> None:
    other = TaskResult("perplexity:test", "knowledge", "generation (chat)", (), ())
    with pytest.raises(InputError, match=r"judged by generation \(chat\)"):
        run(Top(0, 0.0), (other,))


def test_the_bound_from_top_tokens_lies_below_the_divergence() -> None:
    draw = random.Random(5)
    for _ in range(200):
        p, q = ([draw.gammavariate(0.4, 1) + 1e-9 for _ in range(12)] for _ in range(2))
        logs = [{str(i): math.log(w / sum(ws)) for i, w in enumerate(ws)} for ws in (p, q)]
        exact = sum(math.exp(logs[0][t]) * (logs[0][t] - logs[1][t]) for t in logs[0])
        tops = [dict(sorted(place.items(), key=lambda entry: -entry[1])[:5]) for place in logs]
        assert -1e-12 <= least_divergence(*tops) <= exact + 1e-9
        assert least_divergence(*logs) == pytest.approx(exact, abs=1e-9)


def test_a_token_that_the_model_rules_out_counts() -> None:
    # vLLM writes a probability of zero as -9999.
    found = least_divergence({"a": math.log(0.9), "b": math.log(0.1)}, {"a": -9999.0, "b": math.log(0.5)})
    assert found > 100


def test_whole_divergence_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    p, q = rng.normal(size=(2, 100, 50))
    p, q = (np.log(np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    for name, values in (("p", p), ("q", q)):
        np.save(tmp_path / f"{name}.npy", values.astype(np.float16))
    found = whole_divergence(tmp_path / "p.npy", tmp_path / "q.npy")
    assert found == pytest.approx((np.exp(p) * (p - q)).sum(axis=1), rel=0.01, abs=2e-3)


def test_the_real_model_against_its_coarser_self(smollm2: Path, smollm2_q2_k: Path, tmp_path: Path) -> None:
    fine, coarse = LlamaCppScorer(str(smollm2)), LlamaCppScorer(str(smollm2_q2_k))
    try:
        base = stored(run(fine, keep=tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b_c.npy"]
        same = run(fine, base)
        assert same.score("kl_divergence").score == pytest.approx(0, abs=1e-6)
        assert same.score("top1_agreement").score == 1
        result = run(coarse, base)
        divergence, agreement = result.score("kl_divergence"), result.score("top1_agreement")
        assert divergence.low is not None
        assert divergence.low > 0.1
        assert agreement.score is not None
        assert agreement.score < 0.95
        assert json.loads(to_json([result]))["results"][0]["items"][0]["detail"]["whole"] is True
        (tmp_path / "a.npy").unlink()
        assert "distributions are gone" in str(run(coarse, base).score("kl_divergence").reason)
    finally:
        fine.close()
        coarse.close()


def test_a_baseline_that_kept_nothing_has_no_divergence(smollm2: Path) -> None:
    fine = LlamaCppScorer(str(smollm2))
    try:
        result: Any = run(fine, stored(run(fine)))
        assert result.score("perplexity").change == pytest.approx(0, abs=1e-6)
        assert result.score("kl_divergence").score is None
        assert result.score("kl_divergence").reason == "the baseline kept no distributions"
    finally:
        fine.close()
