"""Quality of a quantized model on a task, against its own 16 bits or those of another model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, pstdev
from typing import Any

from qplan.core.errors import InputError, nearest
from qplan.core.quantization import KV16, Quantization
from qplan.models.quality.effects import method_of
from qplan.models.quality.evidence import (
    DIVERGENCE,
    TASK_OF,
    Evidence,
    measured,
    published,
    sampling_error,
    table,
)
from qplan.models.quality.support import Support
from qplan.models.quality.surrogate import LogLoss, Surrogate

KINDS_OF = {
    "chat": ("knowledge", "knowledge", "maths", "instructions"),
    "general": ("knowledge", "knowledge", "maths", "instructions"),
    "code": ("code",),
    "summarization": ("reading",),
}
"""Kinds of benchmarks that stand for a task; half of what is published of chat is about knowledge."""
# The benchmark that sets models against each other on a task. Nothing published compares these models on summaries,
# so general knowledge stands in.
BENCHMARK_OF = {"chat": "MMLU", "general": "MMLU", "code": "HumanEval", "summarization": "MMLU"}

COVERAGE = 0.9
_Z = 1.6448536269514722  # of a two-sided 90 %
# Sampling error of a typical benchmark of the task, which an interval holds because whoever checks will measure one.
_TYPICAL_ERROR = {"code": sampling_error("code", 0.6, 164), "summarization": sampling_error("reading", 0.8, 3498)}
_OTHER_ERROR = sampling_error("knowledge", 0.6, 4000)


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of a quantized model on a task.

    Attributes
    ----------
    value, lower, upper
        Fraction of the reference's 16-bit score, and the range in which a benchmark is expected to find it. Without
        evidence of a gain the value is at most 1; the range is not, for benchmarks are noisy.
    provenance
        ``measured`` or ``published`` for just this model, quantization and task; else ``interpolated`` by the
        surrogate, or ``assumed`` where it extrapolates.
    source
        What the value was drawn from, in words.
    coverage
        Share of cases in which the range is meant to hold the truth; ``None`` where it is a judgement.
    warnings
        How the value extrapolates, in plain words.
    """

    value: float
    lower: float
    upper: float
    provenance: str
    source: str
    coverage: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def interpolated(self) -> bool:
        """Whether no study measured just this."""
        return self.provenance not in ("published", "measured")


class QualityModel:
    """Answers from figures: those of just what is asked first, a surrogate fitted to all of them else.

    Parameters
    ----------
    evidence
        The figures; measured ones go before published ones.
    """

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self.evidence = tuple(evidence)
        self._answers: dict[tuple[str, str, str], Quality] = {}
        self._exact: dict[tuple[str, str], dict[Quantization, list[Evidence]]] = {}
        self._divergences: dict[tuple[str, tuple[str, str]], list[Evidence]] = {}
        self._figures_of = Counter(_formats(one.quantization) for one in self.evidence)
        for one in self.evidence:
            if one.kind == DIVERGENCE:
                self._divergences.setdefault((one.model, _formats(one.quantization)), []).append(one)
            else:
                here = self._exact.setdefault((one.model, TASK_OF[one.kind]), {})
                here.setdefault(_canonical(one.quantization), []).append(one)

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> QualityModel:
        """Join observations of a store or a pack with what is published."""
        return cls((*measured(rows), *published()))

    @cached_property
    def surrogate(self) -> Surrogate:
        """The surrogate, fitted when first asked for."""
        return Surrogate.fit(self.evidence)

    @cached_property
    def support(self) -> Support:
        """What the figures are of, and so where the surrogate extrapolates."""
        return Support.of(self.evidence)

    def quality(self, model: str, quantization: str, task: str, reference: str | None = None) -> Quality:
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
        if task not in KINDS_OF:
            raise InputError(f"task: '{task}' is not one of {', '.join(KINDS_OF)}{nearest(task, KINDS_OF)}")
        model = model.casefold()
        wanted = _canonical(Quantization.parse(quantization, where="quality"))
        kept = self._retention(model, wanted, "chat" if task == "general" else task)
        if reference is None or reference.casefold() == model:
            return kept
        return _against(kept, model, reference, task)

    def proxy(self, nats: float, task: str, model: str) -> Quality:
        """Return the quality that a divergence lets expect: perplexity as a proxy of benchmarks (arXiv 2402.16775).

        Parameters
        ----------
        nats
            Divergence from the 16-bit model in nats per token, or the logarithm of the ratio of perplexities.
        """
        if task not in KINDS_OF or not nats > 0:
            raise InputError(f"proxy: divergence {nats:g} on task '{task}'; expected a number above 0 and a task")
        sensitivity = self.surrogate.sensitivity(model.casefold(), KINDS_OF[task])
        loss = LogLoss(math.log(nats) + sensitivity.mean, sensitivity.deviation)
        return _predicted(loss, task, "interpolated", f"from a divergence of {nats:.3g} nats per token", ())

    def to_data(self) -> dict[str, Any]:
        """Return the model as JSON-ready data: its figures, from which it is fitted again in milliseconds."""
        return {"format": "qplan quality model", "version": 1, "evidence": [one.to_data() for one in self.evidence]}

    @classmethod
    def from_data(cls, data: Any) -> QualityModel:
        """Read what :meth:`to_data` wrote; raises :class:`InputError` for anything else."""
        if not isinstance(data, Mapping) or data.get("format") != "qplan quality model" or data.get("version") != 1:
            raise InputError("quality model: not a quality model of version 1, as to_data writes it")
        if not isinstance(data.get("evidence"), list):
            raise InputError("quality model: 'evidence' is not a list of figures")
        return cls([Evidence.from_data(one) for one in data["evidence"]])

    def _retention(self, model: str, wanted: Quantization, task: str) -> Quality:
        key = model, str(wanted), task
        if key not in self._answers:
            self._answers[key] = self._consistent(model, wanted, task)
        return self._answers[key]

    def _consistent(self, model: str, wanted: Quantization, task: str) -> Quality:
        """Return what `model` keeps of its 16-bit score, not below a coarser nor above a finer one with figures."""
        if wanted.is_16_bit:
            return Quality(1.0, 1.0, 1.0, "published", "16 bits: the baseline itself")
        exact = self._exact.get((model, task), {})
        if wanted in exact:
            return _exact(exact[wanted])
        estimate = self._estimate(model, wanted, task)
        known = {scheme: min(1.0, fmean(one.value for one in rows)) for scheme, rows in exact.items()}
        floors = [kept for scheme, kept in known.items() if _is_coarser(scheme, wanted)]
        ceilings = [kept for scheme, kept in known.items() if _is_finer_of_its_method(scheme, wanted)]
        if wanted.kv != KV16:
            ceilings.append(self._retention(model, _canonical(replace(wanted, kv=KV16)), task).value)
        value = min([1.0, max([estimate.value, *floors]), *ceilings])
        if math.isclose(value, estimate.value):
            return estimate
        move = value - estimate.value
        bound = "not below a coarser" if move > 0 else "not above a finer"
        return replace(
            estimate,
            value=value,
            lower=max(0.0, estimate.lower + move),
            upper=estimate.upper + move,
            source=f"{estimate.source}; {bound} quantization",
        )

    def _estimate(self, model: str, wanted: Quantization, task: str) -> Quality:
        warnings = self.support.warnings(model, wanted)
        loss = self.surrogate.log_loss(model, wanted, KINDS_OF[task])
        own = self._divergences.get((model, _formats(wanted)), [])
        alike = self._figures_of[_formats(wanted)]
        if own:
            basis = f"its own {', '.join(f'{one.metric} ({one.value:.3g} nats)' for one in own)} and others' benchmarks"
        elif alike:
            basis = f"{alike} published figures of {wanted} on other models or tasks"
        else:
            basis = f"figures of other schemes; none of {wanted}"
        source = f"surrogate of {len(self.evidence)} figures, {basis}"
        return _predicted(loss, task, "assumed" if warnings else "interpolated", source, warnings)


def _predicted(loss: LogLoss, task: str, provenance: str, source: str, warnings: tuple[str, ...]) -> Quality:
    """Turn a log-loss into the retention that a benchmark of the task will show, its sampling error included."""
    low, value, high = (math.exp(-math.exp(min(loss.mean + z * loss.deviation, 6.0))) for z in (_Z, 0.0, -_Z))
    noise = _Z * _TYPICAL_ERROR.get(task, _OTHER_ERROR)
    lower, upper = max(0.0, value - math.hypot(value - low, noise)), value + math.hypot(high - value, noise)
    return Quality(value, lower, upper, provenance, source, COVERAGE, warnings)


def _exact(rows: Sequence[Evidence]) -> Quality:
    """Return the mean of the figures of just what is asked; measured ones stand before published ones."""
    own = [one for one in rows if one.provenance == "measured"] or list(rows)
    kept = [one.value for one in own]
    mean = fmean(kept)
    error = math.sqrt(sum(one.error**2 for one in own)) / len(own)
    half = max(2 * pstdev(kept), _Z * error)
    figures = ", ".join(f"{one.metric} keeps {one.value:.1%}" for one in own)
    sources = "; ".join(dict.fromkeys(one.source for one in own))
    # A quantized model that scores above itself shows the benchmark's noise: the value stops at 1, the range does not.
    value = min(1.0, mean)
    return Quality(value, max(0.0, value - half), mean + half, own[0].provenance, f"{figures} ({sources})")


def _against(kept: Quality, model: str, reference: str, task: str) -> Quality:
    """Set what a model keeps of its own score against the 16-bit score of another."""
    benchmark = BENCHMARK_OF[task]
    own, its = _score(model, benchmark), _score(reference.casefold(), benchmark)
    for_want = " for want of a summarization score" if task == "summarization" else ""
    return replace(
        kept,
        value=kept.value * own / its,
        lower=kept.lower * own / its,
        upper=kept.upper * own / its,
        provenance="interpolated" if for_want and not kept.interpolated else kept.provenance,
        source=f"{benchmark} at 16 bits{for_want}: {own:g} against {its:g} of {reference}; {kept.source}",
    )


def _score(model: str, benchmark: str) -> float:
    """Return the published 16-bit score of `model` in percent."""
    rows = (row for row in table("baselines.csv") if row["benchmark"] == benchmark)
    scores = {row["model"]: float(row["score"]) for row in rows}
    if model not in scores:
        raise InputError(
            f"quality: no 16-bit {benchmark} score of '{model}' to set it against another model; "
            f"known are {', '.join(scores)}{nearest(model, scores)}"
        )
    return scores[model]


def _is_coarser(other: Quantization, than: Quantization) -> bool:
    """Return whether no format of `other` has more bits; GGUF compares to GGUF alone."""
    return (
        (other.method == "gguf") == (than.method == "gguf")
        and other.kv == than.kv
        and other.weights.bits <= than.weights.bits
        and other.activations.bits <= than.activations.bits
        and (other.weights.bits, other.activations.bits) != (than.weights.bits, than.activations.bits)
    )


def _is_finer_of_its_method(other: Quantization, than: Quantization) -> bool:
    return (
        method_of(other) == method_of(than)
        and other.activations == than.activations
        and other.kv == than.kv
        and other.bits_per_weight > than.bits_per_weight
    )


def _canonical(quantization: Quantization) -> Quantization:
    """Return one of the two 16-bit schemes for both."""
    return (
        Quantization.parse(str(quantization).replace("FP16", "BF16")) if quantization.scheme == "FP16" else quantization
    )


def _formats(quantization: Quantization) -> tuple[str, str]:
    """Return scheme and KV-cache format."""
    scheme = _canonical(quantization).scheme
    return scheme, f"{quantization.kv.bits} {quantization.kv.kind}"
