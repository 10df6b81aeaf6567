"""A quantization method in the three dimensions of the second study (arXiv 2402.16775): a join of observations.

Knowledge and alignment come from quality rows, efficiency (memory and speed) from serving and saturation rows of the
same deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

DEPLOYMENT = ("model", "quantization", "gpu", "tp", "engine", "engine_version")
"""Columns by which rows are joined."""

# Of these metrics more is better and 1 is the best: their retention is a share that can be averaged over tasks.
_SHARES = ("accuracy", "exact_match", "hard_satisfaction_rate", "rouge_l", "pass@")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Memory and speed of a deployment; ``None`` for what no row says.

    Attributes
    ----------
    memory_bytes
        Largest memory taken on a GPU.
    bits_per_weight
        Measured.
    saturation_qps
        Median over searches.
    tpot_s
        Median time per output token of the lightest load, seconds.
    output_tokens_per_s
        Highest rate of generated tokens of any load.
    joules_per_token
        Lowest energy of a generated token of any load, idle power included.
    """

    memory_bytes: float | None
    bits_per_weight: float | None
    saturation_qps: float | None
    tpot_s: float | None
    output_tokens_per_s: float | None
    joules_per_token: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One deployment in three dimensions.

    Attributes
    ----------
    deployment
        Values of :data:`DEPLOYMENT`.
    knowledge, alignment
        Mean over tasks of score over the baseline's; 1 where nothing is lost; ``None`` without such rows.
    perplexity, kl_divergence
        Means over texts.
    """

    deployment: tuple[Any, ...]
    knowledge: float | None
    alignment: float | None
    perplexity: float | None
    kl_divergence: float | None
    efficiency: Efficiency


def summarize(rows: Iterable[Mapping[str, Any]]) -> tuple[Summary, ...]:
    """Join observations, as rows that map column names to values, by deployment.

    Only rows with status ``ok`` count. Which dimension a task belongs to is what its family says
    (:func:`dimension_of`).
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("status") == "ok":
            groups.setdefault(tuple(row.get(name) for name in DEPLOYMENT), []).append(row)
    return tuple(_summary(deployment, seen) for deployment, seen in groups.items())


def dimension_of(task: str) -> str:
    """Return the dimension of a task by its name: ``alignment`` for following instructions and being truthful."""
    family, _, name = task.partition(":")
    return "alignment" if family == "instructions" or "truthfulqa" in name or "ifeval" in name else "knowledge"


def _summary(deployment: tuple[Any, ...], rows: list[Mapping[str, Any]]) -> Summary:
    quality = [row for row in rows if row.get("phase") == "quality" and row.get("score") is not None]
    kept: dict[str, list[float]] = {"knowledge": [], "alignment": []}
    for row in quality:
        if str(row["metric"]).startswith(_SHARES) and row.get("baseline_score"):
            kept[dimension_of(row["task"])].append(row["score"] / row["baseline_score"])
    return Summary(
        deployment,
        knowledge=_mean(kept["knowledge"]),
        alignment=_mean(kept["alignment"]),
        perplexity=_mean([row["score"] for row in quality if row["metric"] == "perplexity"]),
        kl_divergence=_mean([row["score"] for row in quality if row["metric"] == "kl_divergence"]),
        efficiency=_efficiency(rows),
    )


def _efficiency(rows: list[Mapping[str, Any]]) -> Efficiency:
    serving = [row for row in rows if row.get("phase") == "serving"]
    lightest = min(
        (row for row in serving if row.get("tpot_p50_s") is not None),
        key=lambda row: row.get("offered_qps") or row.get("concurrency") or 0.0,
        default=None,
    )
    searches = [row["saturation_qps"] for row in rows if row.get("saturation_qps") is not None]
    energies = [
        row["energy_j"] / (row["output_tokens_per_s"] * row["duration_s"])
        for row in serving
        if row.get("energy_j") is not None and row.get("output_tokens_per_s") and row.get("duration_s")
    ]
    return Efficiency(
        memory_bytes=_most(rows, "memory_bytes"),
        bits_per_weight=_most(rows, "bits_per_weight"),
        saturation_qps=median(searches) if searches else None,
        tpot_s=lightest["tpot_p50_s"] if lightest else None,
        output_tokens_per_s=_most(serving, "output_tokens_per_s"),
        joules_per_token=min(energies, default=None),
    )


def _most(rows: list[Mapping[str, Any]], column: str) -> float | None:
    return max((row[column] for row in rows if row.get(column) is not None), default=None)


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None
