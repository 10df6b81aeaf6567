"""What was published or measured about quantized models, as two kinds of figures that the surrogate learns from.

A *divergence* tells how far the quantized model's next-token distribution is from the 16-bit one's, in nats per token.
Measured Kullback-Leibler divergence is that itself; the logarithm of the ratio of perplexities is its estimate, for
the rise in cross-entropy is the divergence wherever the 16-bit model is calibrated. On SmolLM2-135M from Q8_0 to Q2_K
the two differ by a factor of 2.0 to 1.06, most where both are tiny, and the share of changed top-1 tokens is 0.46-0.57
times the divergence's root.

A *retention* is a benchmark's score over the same study's 16-bit score.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from qplan.core.errors import InputError
from qplan.core.model import Model
from qplan.core.quantization import Quantization

DIVERGENCE = "divergence"
TASK_OF = {
    "knowledge": "chat",
    "commonsense": "chat",
    "maths": "chat",
    "instructions": "chat",
    "code": "code",
    "reading": "summarization",
}
"""Kinds of benchmarks, and the task that each stands for."""

_KINDS = (
    ("maths", r"gsm|math"),
    ("code", r"humaneval|mbpp|code"),
    ("instructions", r"ifeval|arena|instruction|followbench"),
    ("reading", r"race|summar|newsqa|rouge|cnn"),
    ("commonsense", r"hellaswag|winogrande|piqa|arc-|zero-shot"),
)
# Questions of a benchmark; of an average, the number that would leave the same sampling error.
_ITEMS = (
    (r"mmlu", 14042),
    (r"c-eval", 1346),
    (r"gsm8k", 1319),
    (r"humaneval", 164),
    (r"ifeval", 541),
    (r"arena", 500),
    (r"race-middle", 1436),
    (r"race-high", 3498),
    (r"triviaqa", 11313),
    (r"hellaswag", 10042),
    (r"winogrande", 1267),
    (r"openllm v1", 9000),
    (r"openllm v2", 6000),
    (r"3060 tokens", 3060),
    (r"wikitext2", 300_000),
)
_TYPICAL_SCORE = 0.7  # where only the recovery is stated
# Sampling error of a quantized score against the 16-bit one on the same questions, over that of one score. Choices
# mostly agree, so the two errors cancel in part; a generated answer is another one from the first other token on.
_PAIRED_CHOICES, _PAIRED_GENERATED = 0.6, 1.0
_GENERATED = ("maths", "code", "instructions")
_HARNESS = 0.003  # what repeating an evaluation changes besides: batch order, kernels, prompts' details
_TOP1_RATE = 0.52  # share of changed top-1 tokens over the root of the divergence, SmolLM2-135M, Q8_0 to Q2_K
_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Evidence:
    """One figure.

    Attributes
    ----------
    model
        Name, in lower case.
    kind
        :data:`DIVERGENCE`, or the kind of benchmark: a key of :data:`TASK_OF`.
    metric
        Name of the benchmark or of the text's metric.
    value, error
        Nats per token, or the fraction of the 16-bit score; and the standard error of measuring it.
    provenance
        ``published`` or ``measured``.
    """

    model: str
    quantization: Quantization
    kind: str
    metric: str
    value: float
    error: float
    provenance: str
    source: str

    def to_data(self) -> dict[str, Any]:
        """Return the figure as JSON-ready data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"quantization": str(self.quantization)}

    @classmethod
    def from_data(cls, data: Any) -> Evidence:
        """Read what :meth:`to_data` wrote; raises :class:`InputError` for anything else."""
        if not isinstance(data, Mapping) or set(data) != set(cls.__slots__):
            raise InputError(f"quality model: a figure has the fields {', '.join(cls.__slots__)}; got {data!r:.80}")
        texts = ("model", "quantization", "kind", "metric", "provenance", "source")
        wrong = [name for name in texts if not isinstance(data[name], str)]
        wrong += [name for name in ("value", "error") if not _is_finite(data[name])]
        if wrong or data["kind"] not in (*TASK_OF, DIVERGENCE) or data["error"] < 0:
            raise InputError(
                f"quality model: figure of '{data['model']}' has a wrong {', '.join(wrong) or 'kind or error'}"
            )
        return cls(**{**data, "quantization": Quantization.parse(data["quantization"], where="quality model")})


def kind_of(benchmark: str) -> str:
    """Return the kind of a benchmark by its name: one of :data:`TASK_OF`, ``knowledge`` where nothing else fits."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, benchmark.casefold())), "knowledge")


@cache
def published() -> tuple[Evidence, ...]:
    """Return the figures of ``quality.csv``."""
    return tuple(_published(row) for row in table("quality.csv"))


def measured(rows: Iterable[Mapping[str, Any]]) -> tuple[Evidence, ...]:
    """Return what observations say of quality.

    Parameters
    ----------
    rows
        Observations as mappings of column names; only those of phase ``quality``, status ``ok`` and a quantized model
        with its baseline count. Of one text's divergence, perplexity and top-1 agreement the first stands.
    """
    found: dict[tuple[str, str, str], tuple[int, list[Evidence]]] = {}
    for row in rows:
        if row.get("phase") != "quality" or row.get("status") != "ok" or row.get("score") is None:
            continue
        quantization = Quantization.parse(row["quantization"], where="quality row")
        read = None if quantization.is_16_bit else _measured(row, quantization)
        if read is None:
            continue
        rank, evidence = read
        key = evidence.model, str(quantization), row["task"] if rank < len(_TEXT_METRICS) else evidence.metric
        best = found.setdefault(key, (rank, []))
        if rank < best[0]:
            best = found[key] = (rank, [])
        if rank == best[0]:
            best[1].append(evidence)
    return tuple(evidence for _, group in found.values() for evidence in group)


@cache
def size_of(model: str) -> float | None:
    """Return billions of parameters: of a model of the catalogue, or as its name states (``7b``, ``135m``)."""
    known = {one.name.casefold(): one for one in Model.catalogue()}.get(model)
    if known is not None:
        return known.parameters / 1e9
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", model)
    return None if found is None else float(found[1]) * (1.0 if found[2] == "b" else 1e-3)


def family_of(model: str) -> str:
    """Return a model's name up to its size, less a minor version: ``llama-3`` of ``llama-3.1-8b``."""
    name = re.split(r"-?(?<![a-z0-9.])\d+(?:\.\d+)?[bm](?![a-z0-9])", model)[0]
    return re.sub(r"(?<=\d)\.\d+$", "", name)


@cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a table of :mod:`qplan.profiles`; lines that start with ``#`` are comments."""
    text = files("qplan.profiles").joinpath(name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def sampling_error(kind: str, score: float, items: float) -> float:
    """Return the standard error of a retention: of `items` paired questions, `score` of them right at 16 bits."""
    paired = _PAIRED_GENERATED if kind in _GENERATED else _PAIRED_CHOICES
    return math.hypot(paired * math.sqrt((1 - score) / (score * items)), _HARNESS)


def _published(row: dict[str, str]) -> Evidence:
    metric, value, baseline = row["metric"], float(row["value"]), float(row["baseline"])
    items = next((count for pattern, count in _ITEMS if re.search(pattern, metric.casefold())), 1000)
    if row["higher_is_better"] == "yes":
        kind, figure = kind_of(metric), value / baseline
        rounding = _rounding(row["value"]) / baseline
        score = _TYPICAL_SCORE if "recovery" in metric else baseline / 100
        error = math.hypot(sampling_error(kind, score, items), rounding)
    else:
        kind, figure = DIVERGENCE, _nats(value, baseline)
        error = math.hypot(_divergence_error(figure, items), _rounding(row["value"]) / (value if baseline else 1.0))
    quantization = Quantization.parse(row["quantization"], where="quality.csv")
    return Evidence(row["model"], quantization, kind, metric, figure, error, "published", row["source"])


_TEXT_METRICS = ("kl_divergence", "perplexity", "top1_agreement")
_SHARES = ("accuracy", "exact_match", "pass@", "rouge", "hard_satisfaction_rate")


def _measured(row: Mapping[str, Any], quantization: Quantization) -> tuple[int, Evidence] | None:
    """Return a row's figure behind its rank among one text's metrics, or ``None`` for a metric that says nothing."""
    metric, score, baseline = str(row["metric"]), float(row["score"]), float(row.get("baseline_score") or 0.0)
    items = float(row.get("items") or 1000)
    if metric in _TEXT_METRICS:
        if metric == "perplexity" and not baseline:
            return None
        rank, kind = _TEXT_METRICS.index(metric), DIVERGENCE
        figure = ((1 - score) / _TOP1_RATE) ** 2 if metric == "top1_agreement" else _nats(score, baseline)
        error = _divergence_error(figure, items)
    elif baseline and metric.startswith(_SHARES):
        rank, kind = len(_TEXT_METRICS), kind_of(f"{row['task']} {metric}")
        figure, error = (
            score / baseline,
            _paired_error(row, baseline) or sampling_error(kind, min(baseline, 0.99), items),
        )
    else:
        return None
    model, name, source = str(row["model"]).casefold(), f"{row['task']} {metric}", str(row.get("source") or "")
    return rank, Evidence(model, quantization, kind, name, figure, error, "measured", source)


def _paired_error(row: Mapping[str, Any], baseline: float) -> float | None:
    """Return the standard error of a retention from the 95 % interval of the paired change, where the row has one."""
    low, high = row.get("score_change_low"), row.get("score_change_high")
    return (high - low) / (2 * _Z95 * baseline) if low is not None and high is not None and high > low else None


def _nats(value: float, baseline: float) -> float:
    """Return nats per token from a pair of perplexities, or from a divergence, whose baseline is 0."""
    return math.log(value / baseline) if baseline else value


def _divergence_error(nats: float, tokens: float) -> float:
    """Return the standard error of a mean over tokens whose log-ratio has about twice the divergence as variance."""
    return math.sqrt(2 * max(nats, 0.0) / tokens)


def _rounding(printed: str) -> float:
    """Return the standard error of printing two scores with so many digits behind the point."""
    return 10.0 ** -len(printed.partition(".")[2]) * math.sqrt(2 / 12)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
