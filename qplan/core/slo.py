"""Service-level objectives and their grammar.

::

    slo        = [ percentile ":" ] metric "=" duration
    percentile = "p50" | "p90" | "p99" | "p99.9" ...
    metric     = "ttft" | "tpot" | "itl" | "e2e"

``ttft=1s`` leaves the percentile to a default that the caller states as an assumption. Definitions are vLLM's: TTFT
from sending to the first non-empty content; TPOT ``(E2E - TTFT)/(output_tokens - 1)``; ITL the gap between
consecutive chunks; E2E from sending to the last chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qplan.core.errors import InputError, nearest
from qplan.core.units import format_duration, parse_duration

METRICS = ("ttft", "tpot", "itl", "e2e")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Slo:
    """One objective: `percentile` of `metric` is at most `threshold_s`.

    Attributes
    ----------
    metric
        ``ttft``, ``tpot``, ``itl`` or ``e2e``.
    threshold_s
        Seconds, positive.
    percentile
        In ``(0, 100)``; ``None`` where the user left it open.
    """

    metric: str
    threshold_s: float
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(
                f"SLO: unknown metric '{self.metric}'; expected one of {', '.join(METRICS)}"
                f"{nearest(self.metric, METRICS)}"
            )
        if not 0 < self.threshold_s < float("inf"):
            raise InputError(f"SLO {self.metric}: threshold {self.threshold_s:g} s; expected more than 0")
        if self.percentile is not None and not 0 < self.percentile < 100:
            raise InputError(f"SLO {self.metric}: percentile {self.percentile:g}; expected between 0 and 100")

    @classmethod
    def parse(cls, text: str, where: str = "--slo") -> Slo:
        """Read one SLO; `where` names the flag or file and line in an error."""
        metric, equals, threshold = text.strip().partition("=")
        head, colon, tail = metric.rpartition(":")
        name = tail.strip().casefold()
        if not equals or name not in METRICS:
            raise InputError(
                f"{where}: cannot read '{text}'; expected METRIC=DURATION such as ttft=1s or p99:tpot=50ms, "
                f"METRIC one of {', '.join(METRICS)}{nearest(name, METRICS)}"
            )
        percentile = _parse_percentile(head, text, where) if colon else None
        seconds = parse_duration(threshold, where)
        if seconds <= 0:
            raise InputError(f"{where}: '{text}' has a threshold of {threshold}; expected more than 0")
        return cls(name, seconds, percentile)

    @classmethod
    def parse_all(cls, texts: Iterable[str], where: str = "--slo") -> tuple[Slo, ...]:
        """Read several SLOs, each text one or a comma-separated list; no metric and percentile may come twice."""
        slos = tuple(cls.parse(part, where) for text in texts for part in text.split(","))
        for index, slo in enumerate(slos):
            if any((slo.metric, slo.percentile) == (other.metric, other.percentile) for other in slos[:index]):
                raise InputError(f"{where}: '{slo}' repeats an SLO on the same percentile of {slo.metric}")
        return slos

    def at(self, default: float) -> Slo:
        """Return this SLO with the percentile `default` where none was said."""
        return self if self.percentile is not None else replace(self, percentile=default)

    def __str__(self) -> str:
        """Print in the grammar it is read from."""
        head = "" if self.percentile is None else f"p{self.percentile:g}:"
        return f"{head}{self.metric}={format_duration(self.threshold_s).replace(' ', '')}"


def _parse_percentile(head: str, text: str, where: str) -> float:
    match = _PERCENTILE.fullmatch(head.strip())
    if match is None or not 0 < float(match[1]) < 100:
        raise InputError(
            f"{where}: unknown percentile '{head}' in '{text}'; expected p50, p90, p99 or another below p100"
        )
    return float(match[1])
