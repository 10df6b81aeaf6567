"""Perplexity of a text, and how far a quantized model strays from its baseline on every token of it.

Passages are scored one by one, each without what came before it, so that every engine sees the same context. Over the
scored tokens t of all passages, with p the baseline's distribution in the place of t and q the model's:

- perplexity is exp(-mean log q(t));
- KL divergence is the mean of sum_v p(v) log(p(v) / q(v)), in nats;
- top-1 agreement is the share of places where p and q have the same most probable token.

The last two are paired by nature, and tell methods apart on texts where the interval of perplexity is far too wide.
A server that tells only its most probable tokens gives a lower bound of the divergence, a metric of another name: on
SmolLM2-135M some 0.55 to 0.65 of it from 20 tokens, and 0.83 from 100.

The interval of perplexity takes passages as what is drawn, for they differ more than their tokens; differences between
two models do not, and their intervals take tokens (both checked on the sample text: over passages the standard error
of the loss is twice that over tokens, that of its paired difference and of the divergence is the same).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qplan.core.errors import MeasurementError
from qplan.measure.quality.paired import clustered, student, wilson
from qplan.measure.quality.results import Item, Score, TaskResult, baseline_of
from qplan.measure.quality.scoring import Scorer, TokenScores
from qplan.measure.quality.sources import Load

if TYPE_CHECKING:
    from qplan.measure.quality.subject import Subject

METHOD = "log-likelihood"


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The task ``perplexity:NAME``.

    Attributes
    ----------
    name
        Name of the task.
    load
        Loads passages of some hundred tokens.
    """

    name: str
    load: Load
    dimension: str = "knowledge"

    def run(self, subject: Subject, baseline: Sequence[TaskResult]) -> TaskResult:
        """Score every passage, and compare with the baseline's scores where there are any."""
        reference = baseline_of(self.name, METHOD, baseline)
        scorer = subject.scorer()
        passages = self.load()
        if isinstance(scorer, str):
            items = tuple(Item(passage["id"], None, error=scorer) for passage in passages)
        else:
            before = {item.id: item for item in reference.items} if reference else {}
            items = tuple(
                _judge(passage["id"], passage["text"], scorer, before.get(passage["id"]), subject.keep)
                for passage in subject.follow(self.name, passages)
            )
        return TaskResult(self.name, self.dimension, METHOD, scores(items, reference), items)


def scores(items: Sequence[Item], reference: TaskResult | None) -> tuple[Score, ...]:
    """Sum passages up: perplexity, KL divergence and top-1 agreement."""
    known = [item for item in items if item.score is not None]
    if not known:
        reason = next((item.error for item in items if item.error), "no passages")
        return (Score("perplexity", None, reason=reason),)
    passages = [[-value for value in item.detail["logprobs"]] for item in known]
    losses = [loss for passage in passages for loss in passage]
    low, high = clustered(passages) if len(passages) > 1 else student(losses)
    perplexity = Score(
        "perplexity",
        math.exp(fmean(losses)),
        math.exp(low) if low is not None else None,
        math.exp(high) if high is not None else None,
        len(losses),
    )
    if reference is None:
        return (perplexity,)
    before = {item.id: item.detail for item in reference.items if item.score is not None}
    pairs = [(item.detail, before[item.id]) for item in known if item.id in before]
    for now, then in pairs:
        if list(now["tokens"]) != list(then["tokens"]):
            reason = "the baseline splits the text into other tokens: it is not the same model"
            return (perplexity, Score("kl_divergence", None, reason=reason))
    if not pairs:
        return (perplexity,)
    agreed = [float(a == b) for now, then in pairs for a, b in zip(now["top1"], then["top1"], strict=True)]
    low, high = wilson(sum(agreed), len(agreed))
    agreement = Score(
        "top1_agreement", fmean(agreed), low, high, len(agreed), 1.0, fmean(agreed) - 1, low - 1, high - 1
    )
    return (_changed(perplexity, pairs), _divergence([now for now, _ in pairs]), agreement)


def _changed(perplexity: Score, pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Score:
    """Add the change of perplexity: the baseline's times (exp(mean paired loss difference) - 1)."""
    assert perplexity.score is not None
    base = math.exp(-fmean(value for _, then in pairs for value in then["logprobs"]))
    differences = [b - a for now, then in pairs for a, b in zip(now["logprobs"], then["logprobs"], strict=True)]
    low, high = student(differences)
    return Score(
        perplexity.metric,
        perplexity.score,
        perplexity.low,
        perplexity.high,
        perplexity.items,
        baseline_score=base,
        change=base * math.expm1(fmean(differences)),
        change_low=base * math.expm1(low) if low is not None else None,
        change_high=base * math.expm1(high) if high is not None else None,
    )


def _divergence(details: list[Mapping[str, Any]]) -> Score:
    missing = [detail for detail in details if "divergence" not in detail]
    if missing:
        return Score(
            "kl_divergence", None, reason=missing[0].get("no_divergence", "the baseline kept no distributions")
        )
    metric = "kl_divergence" if all(d["whole"] for d in details) else "kl_divergence_lower_bound"
    values = [value for detail in details for value in detail["divergence"]]
    mean = fmean(values)
    low, high = student(values)
    return Score(metric, mean, low, high, len(values), 0.0, mean, low, high)


def _judge(key: str, text: str, scorer: Scorer, before: Item | None, keep: Path | None) -> Item:
    """Score one passage; keep its distributions, or compare them with those that the baseline kept."""
    with tempfile.TemporaryDirectory(prefix="qplan-quality-") as folder:
        kept = before.detail.get("distributions") if before else None
        save = None
        if scorer.whole and keep is not None:
            save = keep / f"{key.replace('/', '_')}.npy"
        elif scorer.whole and kept is not None:
            save = Path(folder) / "now.npy"
        try:
            now = scorer.score(text, save)
        except MeasurementError as error:
            return Item(key, None, error=str(error))
        detail: dict[str, Any] = {
            "tokens": list(now.tokens),
            "logprobs": list(now.logprobs),
            "top1": list(now.top1),
        }
        if now.top is not None:
            detail["top"] = [dict(place) for place in now.top]
        if keep is not None and save is not None:
            detail["distributions"] = str(save)
        if before is not None and before.score is not None:
            detail |= _compare(before.detail, now)
    return Item(key, -fmean(now.logprobs), detail=detail)


def _compare(before: Mapping[str, Any], now: TokenScores) -> dict[str, Any]:
    """Return the KL divergence of each place, or why there is none."""
    if list(before["tokens"]) != list(now.tokens):
        return {"no_divergence": "the baseline splits the text into other tokens"}
    if now.distributions is not None and before.get("distributions"):
        if not Path(before["distributions"]).is_file():
            return {"no_divergence": f"the baseline's distributions are gone: {before['distributions']}"}
        return {"divergence": whole_divergence(Path(before["distributions"]), now.distributions), "whole": True}
    if now.top is not None and before.get("top"):
        places = zip(before["top"], now.top, strict=True)
        return {"divergence": [least_divergence(p, q) for p, q in places], "whole": False}
    return {}


def whole_divergence(baseline: Path, model: Path) -> list[float]:
    """Return the KL divergence of each place from two files of log-probabilities, nats."""
    import numpy as np

    before, now = np.load(baseline, mmap_mode="r"), np.load(model, mmap_mode="r")
    divergences: list[float] = []
    for start in range(0, len(before), 64):
        p, q = (rows[start : start + 64].astype(np.float64) for rows in (before, now))
        divergences += (np.exp(p) * (p - q)).sum(axis=1).tolist()
    return [round(value, 7) for value in divergences]


def least_divergence(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return a lower bound of the KL divergence of one place from the most probable tokens of both, nats.

    Tokens that both know are told apart, all others fall into one class: merging outcomes never raises the divergence.
    """
    shared = [token for token in before if token in now]
    told = sum(math.exp(before[token]) * (before[token] - now[token]) for token in shared)
    rest_before, rest_now = (1 - sum(math.exp(place[token]) for token in shared) for place in (before, now))
    rest = rest_before * math.log(rest_before / max(rest_now, 1e-12)) if rest_before > 0 else 0.0
    return max(0.0, told + rest)
