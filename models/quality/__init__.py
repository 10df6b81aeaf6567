"""Quality of a quantized model as a fraction of a 16-bit reference, from published figures.

Two tables carry the figures: ``quality.csv``, how a benchmark's score moves under quantization, and
``baselines.csv``, 16-bit scores that set one model against another (both in :mod:`qplan.profiles`).

The *retention* of a row is its quantized score over the 16-bit score of the same study. Perplexity is a good
proxy for most benchmarks (arXiv 2402.16775): ``ln(retention) = -0.11 (perplexity - baseline)``. The rate is
that of the pair which has both, Llama-2-70B under AWQ: perplexity rises by 0.09 and MMLU falls by 1.0 %. A
difference is used, not a ratio, because a ratio would hide that larger models lose less.

What is returned for a model, a quantization and a task is the first of these that exists:

published
    The mean of the rows that measured just that.
interpolated
    The weighted mean of the nearest rows: the same scheme on other models and tasks, perplexity included, or
    other schemes of the same bits. A row weighs more on the same model and the same task, and less the
    further its model's size is. A quantized KV cache without rows of its own multiplies what the scheme
    keeps with what a 16-bit model keeps with that cache.
assumed
    As interpolated, but from schemes that share only the number of weight bits.

No value exceeds 1: a published gain is the benchmark's noise, and shows in the range alone. What is not published
never exceeds the same scheme with a 16-bit KV cache, nor, where the scheme has
no rows, its method at more bits; and it is never below a coarser scheme that has rows.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from qplan.core.errors import InputError, nearest
from qplan.core.quantization import KV16, Quantization

if TYPE_CHECKING:
    from collections.abc import Sequence

# A task's own rows in quality.csv, and the benchmark that sets models against each other on it. Nothing
# published compares these models on summaries, so general knowledge stands in.
ROWS_OF = {"chat": "chat", "general": "chat", "code": "code", "summarization": "summarization"}
BENCHMARK_OF = {"chat": "MMLU", "general": "MMLU", "code": "HumanEval", "summarization": "MMLU"}

PERPLEXITY_RATE = 0.11  # loss of ln(score) per unit of perplexity
# Half-width that evidence cannot narrow: HumanEval has 164 problems, MMLU 14,042 questions.
NOISE = {"code": 0.04}
DEFAULT_NOISE = 0.01
WIDENED = {"published": 1.0, "interpolated": 2.0, "assumed": 4.0}
# What a row weighs on the same model, the same task, or perplexity, against 1 for another task.
SAME_MODEL, SAME_TASK, PERPLEXITY = 4.0, 4.0, 2.0


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of a quantized model on a task.

    Attributes
    ----------
    value, lower, upper
        Fraction of the reference's 16-bit score, and the range to expect it in.
    provenance
        ``published``, ``interpolated`` or ``assumed``.
    source
        What the value was drawn from, in words.
    """

    value: float
    lower: float
    upper: float
    provenance: str
    source: str

    @property
    def interpolated(self) -> bool:
        """Whether no study measured just this."""
        return self.provenance != "published"


@dataclass(frozen=True, slots=True)
class _Row:
    """One published figure, as the fraction of the 16-bit score that was kept."""

    model: str
    quantization: Quantization
    task: str
    metric: str
    retention: float
    source: str


@cache
def quality(model: str, quantization: str, task: str, reference: str | None = None) -> Quality:
    """Return the quality of `model` under `quantization` on `task`.

    Parameters
    ----------
    model, reference
        Names of models. The reference is held at 16 bits; ``None`` stands for `model` itself.
    quantization
        Any spelling that :meth:`qplan.core.quantization.Quantization.parse` reads.
    task
        ``chat``, ``code``, ``summarization`` or ``general``.

    Raises
    ------
    InputError
        When the quantization or the task is unknown, or no published score sets `model` against `reference`.
    """
    if task not in ROWS_OF:
        raise InputError(f"task: '{task}' is not one of {', '.join(ROWS_OF)}{nearest(task, ROWS_OF)}")
    model = model.casefold()
    kept = _retention(model, Quantization.parse(quantization, where="quality"), ROWS_OF[task])
    if reference is None or reference.casefold() == model:
        return kept
    benchmark = BENCHMARK_OF[task]
    own, its = _score(model, benchmark), _score(reference.casefold(), benchmark)
    stand_in = task == "summarization" and kept.provenance == "published"
    return Quality(
        kept.value * own / its,
        kept.lower * own / its,
        kept.upper * own / its,
        "interpolated" if stand_in else kept.provenance,
        f"{benchmark} at 16 bits{' for want of a summarization score' if task == 'summarization' else ''}: "
        f"{own:g} against {its:g} of {reference}; {kept.source}",
    )


def _score(model: str, benchmark: str) -> float:
    """Return the published 16-bit score of `model` in percent."""
    rows = (row for row in _table("baselines.csv") if row["benchmark"] == benchmark)
    scores = {row["model"]: float(row["score"]) for row in rows}
    if model not in scores:
        raise InputError(
            f"quality: no 16-bit {benchmark} score of '{model}' to set it against another model; "
            f"known are {', '.join(scores)}{nearest(model, scores)}"
        )
    return scores[model]


@cache
def _retention(model: str, wanted: Quantization, task: str) -> Quality:
    """Return what `model` keeps of its own 16-bit score, consistent with coarser and finer quantizations."""
    estimate = _estimate(model, wanted, task)
    if estimate.provenance == "published":
        return estimate
    floors = [_estimate(model, other, task).value for other in _measured() if _is_coarser(other, wanted)]
    if wanted.kv != KV16:
        ceilings = [_retention(model, replace(wanted, kv=KV16), task).value]
    elif wanted in _measured():
        ceilings = []
    else:
        ceilings = [_estimate(model, finer, task).value for finer in _method_at_more_bits(wanted)]
    value = min([1.0, max([estimate.value, *floors]), *ceilings])
    if math.isclose(value, estimate.value):
        return estimate
    move, bound = (
        value - estimate.value,
        "not below a coarser" if value > estimate.value else "not above a finer",
    )
    lower, upper = max(0.0, estimate.lower + move), max(value, min(1.0, estimate.upper + move))
    return Quality(value, lower, upper, estimate.provenance, f"{estimate.source}; {bound} quantization")


@cache
def _estimate(model: str, wanted: Quantization, task: str) -> Quality:
    """Return what the nearest rows say that `model` keeps of its own 16-bit score."""
    if wanted.is_16_bit:
        return Quality(1.0, 1.0, 1.0, "published", "16 bits: the baseline itself")
    same = [row for row in _rows() if _formats(row.quantization) == _formats(wanted)]
    exact = [row for row in same if row.model == model and row.task == task]
    if exact:
        kept, source = [row.retention for row in exact], _listed(exact)
        return _summary(kept, [1.0] * len(exact), task, "published", source)
    if not same and wanted.kv != KV16 and not _is_16_bit_scheme(wanted):
        return _times_cache(model, wanted, task)
    rows, provenance, source = _nearest_rows(wanted, same)
    kept = [min(1.0, row.retention) for row in rows]
    return _summary(kept, [_weight(row, model, task) for row in rows], task, provenance, source)


def _times_cache(model: str, wanted: Quantization, task: str) -> Quality:
    """Multiply what the scheme keeps with what a 16-bit model keeps with the same KV cache."""
    kind = "FP" if wanted.kv.kind == "float" else "INT"
    scheme = _retention(model, replace(wanted, kv=KV16), task)
    cached = _retention(model, Quantization.parse(f"BF16-KV{wanted.kv.bits}-{kind}"), task)
    value = min(1.0, scheme.value) * min(1.0, cached.value)
    half = math.hypot(scheme.value - scheme.lower, cached.value - cached.lower)
    provenance = "assumed" if "assumed" in (scheme.provenance, cached.provenance) else "interpolated"
    source = f"{wanted.scheme} ({scheme.source}) times KV{wanted.kv.bits}-{kind} ({cached.source})"
    return Quality(value, max(0.0, value - half), min(1.0, value + half), provenance, source)


def _nearest_rows(wanted: Quantization, same: Sequence[_Row]) -> tuple[Sequence[_Row], str, str]:
    """Return the rows nearest to `wanted` that exist, the provenance they give, and what they are."""
    bits = f"W{wanted.weights.bits}A{wanted.activations.bits}"
    of_bits = [row for row in _rows() if _bits(row.quantization) == _bits(wanted)]
    of_bits_and_cache = [row for row in of_bits if row.quantization.kv.bits == wanted.kv.bits]
    of_weights = [row for row in _rows() if row.quantization.weights.bits == wanted.weights.bits]
    tiers = (
        (same, "interpolated", f"{wanted} on other models or tasks"),
        (of_bits_and_cache, "interpolated", f"other {bits} schemes at KV{wanted.kv.bits}"),
        (of_bits, "interpolated", f"{bits} schemes with another KV cache"),
        (of_weights, "assumed", f"any scheme of {wanted.weights.bits}-bit weights"),
    )
    for rows, provenance, what in tiers:
        if rows:
            return rows, provenance, f"weighted mean of {len(rows)} published figures of {what}"
    raise InputError(f"quality: no figure is published for {wanted.weights.bits}-bit weights ({wanted})")


def _summary(values: Sequence[float], weights: Sequence[float], task: str, provenance: str, source: str) -> Quality:
    """Return the weighted mean, and two weighted standard deviations or the task's own noise around it."""
    total = math.fsum(weights)
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    variance = math.fsum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / total
    noise = NOISE.get(task, DEFAULT_NOISE) * WIDENED[provenance]
    half = max(2 * math.sqrt(variance), noise)
    upper = mean + half if provenance == "published" else min(1.0, mean + half)
    # A quantized model that scores above itself shows the benchmark's noise: the value stops at 1, the range does not.
    return Quality(min(1.0, mean), max(0.0, min(1.0, mean) - half), upper, provenance, source)


def _is_coarser(other: Quantization, than: Quantization) -> bool:
    """Return whether no format of `other` has more bits; GGUF compares to GGUF alone."""
    return (
        (other.method == "gguf") == (than.method == "gguf")
        and other.kv == than.kv
        and other.weights.bits <= than.weights.bits
        and other.activations.bits <= than.activations.bits
        and (other.weights.bits, other.activations.bits) != (than.weights.bits, than.activations.bits)
    )


def _method_at_more_bits(wanted: Quantization) -> list[Quantization]:
    return [
        scheme
        for scheme in _measured()
        if scheme.method == wanted.method
        and scheme.activations == wanted.activations
        and scheme.kv == wanted.kv
        and scheme.weights.bits > wanted.weights.bits
    ]


def _weight(row: _Row, model: str, task: str) -> float:
    """Return how much a row says about `model` on `task`."""
    weight = SAME_MODEL if row.model == model else 1.0
    weight *= {task: SAME_TASK, "any": PERPLEXITY}.get(row.task, 1.0)
    size, other = _size(model), _size(row.model)
    return weight if size is None or other is None else weight * min(size / other, other / size)


def _size(model: str) -> float | None:
    """Return the billions (or fractions) of parameters that a name states, as ``7b`` or ``135m`` does."""
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", model)
    return None if found is None else float(found[1]) * (1.0 if found[2] == "b" else 1e-3)


def _formats(quantization: Quantization) -> tuple[str, str]:
    """Return scheme and KV-cache format; both 16-bit schemes are one."""
    scheme = "16-bit" if _is_16_bit_scheme(quantization) else quantization.scheme
    return scheme, f"{quantization.kv.bits} {quantization.kv.kind}"


def _bits(quantization: Quantization) -> tuple[int, int, str, bool]:
    """Return what makes schemes alike; GGUF mixes more bits into a type than its name says."""
    activations = quantization.activations
    return quantization.weights.bits, activations.bits, activations.kind, quantization.method == "gguf"


def _is_16_bit_scheme(quantization: Quantization) -> bool:
    return quantization.weights.bits == quantization.activations.bits == 16


def _listed(rows: Sequence[_Row]) -> str:
    figures = ", ".join(f"{row.metric} keeps {row.retention:.1%}" for row in rows)
    return f"{figures} ({'; '.join(dict.fromkeys(row.source for row in rows))})"


@cache
def _rows() -> tuple[_Row, ...]:
    return tuple(
        _Row(
            row["model"],
            Quantization.parse(row["quantization"], where="quality.csv"),
            row["task"],
            row["metric"],
            retention(float(row["value"]), float(row["baseline"]), row["higher_is_better"] == "yes"),
            row["source"],
        )
        for row in _table("quality.csv")
    )


@cache
def _measured() -> tuple[Quantization, ...]:
    return tuple(dict.fromkeys(row.quantization for row in _rows()))


def retention(value: float, baseline: float, higher_is_better: bool) -> float:
    """Return the fraction of the 16-bit score that is kept; a lower-is-better metric is a perplexity."""
    return value / baseline if higher_is_better else math.exp(-PERPLEXITY_RATE * (value - baseline))


@cache
def _table(name: str) -> tuple[dict[str, str], ...]:
    text = files("qplan.profiles").joinpath(name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
