"""Objectives of a study: what is read from the observations of a configuration, in which unit, and which way is better.

Measured and looked up alike: a configuration's observations are rows of :mod:`qplan.profiles.schema`, and the median
over repeats counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from qplan.core.errors import InputError, nearest
from qplan.core.slo import METRICS
from qplan.profiles.schema import names as column_names
from qplan.solvers.tuning.axes import Axis
from qplan.solvers.tuning.space import Configuration, known_model

SERVING, SATURATION, QUALITY, ANY = "serving", "saturation", "quality", "any"

Row = Mapping[str, Any]

_LESS_IS_BETTER = ("perplexity", "kl_divergence", "kl_divergence_lower_bound")
_OF_THE_BASELINE = {"kl_divergence": 0.0, "kl_divergence_lower_bound": 0.0, "top1_agreement": 1.0}
"""What the unquantized model strays from itself, by the metrics that are measured beside it."""
_LATENCY = re.compile(r"(?:p(\d+)|mean):(\w+)")
_MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Objective:
    """A quantity that a study makes small, or large.

    Attributes
    ----------
    name
        As it is written: ``p90:ttft``, ``saturation``, ``energy``, ``perplexity:english`` ...
    maximize
        Whether more is better.
    log
        Whether ratios matter, as of times and rates, and not differences.
    phase
        Which observations tell it.
    column
        Their column; ``None`` where it is computed from several.
    task, metric
        Of a quality objective.
    """

    name: str
    unit: str
    maximize: bool
    log: bool
    phase: str
    column: str | None = None
    task: str = ""
    metric: str = ""

    @property
    def axis(self) -> Axis:
        """As the sampler sees it."""
        return Axis(self.name, self.maximize, self.log)

    def value(self, one: Configuration, rows: Iterable[Row]) -> float | None:
        """Return the median over the rows that tell it, or ``None`` where none does.

        Of a saturation rate that no search has found, but only bounded from below, the bound counts: see :meth:`bound`.
        """
        seen = [row for row in rows if row.get("status") == "ok"]
        if self.phase == QUALITY:
            found = [row.get("score") for row in seen if self._is_judged_by(row)]
        elif self.column is not None:
            found = [row.get(self.column) for row in seen if self.phase in (row["phase"], ANY)]
        else:
            return _COMPUTED[self.name](one, seen)
        values = [float(value) for value in found if value is not None]
        if values:
            return median(values)
        if self.phase == QUALITY and one.target.is_unquantized and any(row.get("task") == self.task for row in seen):
            return _OF_THE_BASELINE.get(self.metric)
        return _surely_reached(seen) if self.phase == SATURATION else None

    def bound(self, one: Configuration, rows: Sequence[Row]) -> str | None:
        """Say that the value is a bound, and why; ``None`` where it is the value itself.

        A search that no rate was too high for, or that had no time to find one, tells the least that saturation is.
        """
        seen = [row for row in rows if row.get("status") == "ok"]
        of_saturation = self.phase == SATURATION or (self.name == "cost" and not _throughputs(seen))
        value = self.value(one, seen)
        if value is None or not of_saturation or any(row.get("saturation_qps") for row in seen):
            return None
        return f"{self.name} is at {'least' if self.maximize else 'most'} {value:.4g} {self.unit}{_why_bounded(seen)}"

    @property
    def paired(self) -> bool:
        """Whether it is measured beside the unquantized model, item by item."""
        return self.metric in _OF_THE_BASELINE

    def _is_judged_by(self, row: Row) -> bool:
        return row["phase"] == QUALITY and row.get("task") == self.task and row.get("metric") == self.metric


def bounds_of_saturation(rows: Iterable[Row]) -> str | None:
    """Say on which side of what searches tried the saturation rate is; ``None`` where one found it, or none tells."""
    searches = [row for row in rows if row["phase"] == SATURATION and row.get("status") == "ok"]
    if any(row.get("saturation_qps") for row in searches):
        return None
    lows, highs = (
        [float(row[f"saturation_{end}_qps"]) for row in searches if row.get(f"saturation_{end}_qps")]
        for end in ("low", "high")
    )
    told = [f"at least {median(lows):.4g}"] if lows else []
    told += [f"at most {median(highs):.4g}"] if highs else []
    return f"saturation is {' and '.join(told)} req/s{_why_bounded(searches)}" if told else None


@dataclass(frozen=True, slots=True)
class Limit:
    """The worst value of a quantity that is accepted."""

    objective: Objective
    worst: float

    def excess(self, value: float) -> float:
        """Return by how much a value misses the limit, relative to it; 0 or less where it keeps it."""
        beyond = self.worst - value if self.objective.maximize else value - self.worst
        return beyond / max(abs(self.worst), 1e-12)


def parse_objective(text: str, where: str) -> Objective:
    """Read an objective by its name.

    Raises
    ------
    InputError
        There is no such objective; the message names the nearest.
    """
    name = text.strip()
    fixed = _FIXED.get(name.casefold())
    if fixed is not None:
        return fixed
    head = name.casefold()
    latency = _LATENCY.fullmatch(head if ":" in head else f"p90:{head}")
    if latency is not None and latency[2] in METRICS:
        statistic = "mean" if latency[1] is None else f"p{latency[1]}"
        column = f"{latency[2]}_{statistic}_s"
        if column not in column_names():
            raise InputError(
                f"{where}: no {statistic} of {latency[2]} is measured; expected mean, p50, p90, p95 or p99"
            )
        return Objective(f"{statistic}:{latency[2]}", "s", False, True, SERVING, column)
    return _quality(name, where)


def _quality(name: str, where: str) -> Objective:
    """Read ``TASK`` or ``TASK/METRIC``."""
    from qplan.measure.quality import open_task

    task, slash, metric = name.partition("/")
    try:
        known = open_task(task, where).name
    except InputError:
        choices = [*_FIXED, *METRICS, "perplexity:english", "choice:sample", "humaneval"]
        raise InputError(
            f"{where}: unknown objective '{name}'; expected one of {', '.join(_FIXED)}, a latency such as p90:ttft, "
            f"or a quality task such as perplexity:english{nearest(name, choices)}"
        ) from None
    metric = metric if slash else _FIRST_METRIC.get(known.partition(":")[0], "accuracy")
    less = metric in _LESS_IS_BETTER
    return Objective(name, "", not less, metric == "perplexity", QUALITY, None, known, metric)


def _memory_bytes(one: Configuration, rows: Sequence[Row]) -> float | None:
    """Return the memory of each GPU: measured, else measured bits of the weights and the KV cache that they leave.

    On a CPU nobody says what is taken: weights are their measured bits times the model's parameters, and the KV cache
    holds every sequence at full length, as llama.cpp allocates it.
    """
    measured = [float(row["memory_bytes"]) for row in rows if row.get("memory_bytes") is not None]
    if measured:
        return max(measured)
    bits = [float(row["bits_per_weight"]) for row in rows if row.get("bits_per_weight") is not None]
    model = known_model(one.target.model)
    if not bits or model is None:
        return None
    from qplan.core.deployment import Deployment
    from qplan.core.quantization import Quantization

    deployment = Deployment(model, Quantization.parse(one.target.quantization), one.gpu, one.target.tp)
    tokens = one.target.context_tokens * one.target.max_sequences
    return median(bits) * model.parameters / 8 / one.target.tp + tokens * deployment.kv_bytes_per_token


def _joules_per_token(_: Configuration, rows: Sequence[Row]) -> float | None:
    found = [
        float(row["energy_j"]) / (float(row["output_tokens_per_s"]) * float(row["duration_s"]))
        for row in rows
        if row["phase"] == SERVING and row.get("energy_j") and row.get("output_tokens_per_s") and row.get("duration_s")
    ]
    return median(found) if found else None


def _dollars_per_million(one: Configuration, rows: Sequence[Row]) -> float | None:
    """Return the price of a million generated tokens: at the load where one is offered, else at saturation."""
    rates = _throughputs(rows)
    qps = [float(row["saturation_qps"]) for row in rows if row["phase"] == SATURATION and row.get("saturation_qps")]
    reached = median(qps) if qps else _surely_reached(rows)
    if not rates and reached is not None:
        rates = [
            reached * float(r["output_tokens"]) for r in rows if r["phase"] == SATURATION and r.get("output_tokens")
        ]
    if not rates or not one.gpu.price_per_hour:
        return None
    return one.gpus * one.gpu.price_per_hour / 3600 / (median(rates) * _MICRO)


def _throughputs(rows: Iterable[Row]) -> list[float]:
    """Return the tokens generated per second at the loads that were offered."""
    tokens = [row.get("output_tokens_per_s") for row in rows if row["phase"] == SERVING]
    return [float(rate) for rate in tokens if rate]


def _why_bounded(rows: Iterable[Row]) -> str:
    return next((f": {row['reason']}" for row in rows if row["phase"] == SATURATION and row.get("reason")), "")


def _surely_reached(rows: Iterable[Row]) -> float | None:
    """Return the rate that searches without an upper end found to be sustained; of several searches the median."""
    searches = [row for row in rows if row["phase"] == SATURATION and row.get("saturation_qps") is None]
    lows = [row.get("saturation_low_qps") for row in searches if row.get("saturation_high_qps") is None]
    known = [float(low) for low in lows if low]
    return median(known) if known else None


_COMPUTED = {"energy": _joules_per_token, "cost": _dollars_per_million, "memory": _memory_bytes}

_FIXED: Mapping[str, Objective] = {
    one.name: one
    for one in (
        Objective("saturation", "req/s", True, True, SATURATION, "saturation_qps"),
        Objective("goodput", "req/s", True, True, SERVING, "goodput_qps"),
        Objective("throughput", "tokens/s", True, True, SERVING, "output_tokens_per_s"),
        Objective("energy", "J/token", False, True, SERVING),
        Objective("cost", "$/Mtoken", False, True, ANY),
        Objective("memory", "bytes", False, True, ANY),
    )
}

_FIRST_METRIC: Mapping[str, str] = {
    "perplexity": "perplexity",
    "choice": "accuracy",
    "math": "exact_match",
    "humaneval": "pass@1",
    "summaries": "rouge_l",
}
