"""Counters, gauges and histograms, and Prometheus' text format of them.

Several processes of one router each keep their own; whichever is asked adds them up (:func:`merge`), so that a scrape
sees the router and not the process that happened to answer. Format:
prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
_SHORT_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes
    ----------
    kind
        ``counter``, ``gauge`` or ``histogram``.
    bounds
        Upper bounds of a histogram's buckets.
    """

    name: str
    kind: str
    help: str
    bounds: tuple[float, ...] = ()


REQUESTS = Family("qplan_router_requests_total", "counter", "Requests that are over, by how they ended.")
ATTEMPTS = Family("qplan_router_attempts_total", "counter", "Requests sent to a replica, by what came of it.")
TOKENS = Family("qplan_router_tokens_total", "counter", "Tokens of requests that were answered.")
PREDICTED_ENERGY = Family(
    "qplan_router_predicted_energy_joules_total",
    "counter",
    "Energy above idle that the policy expects of what was dispatched.",
)
PREDICTED_IDLE = Family(
    "qplan_router_predicted_idle_watts", "gauge", "Power that the policy expects of a replica that serves nothing."
)
ENERGY = Family(
    "qplan_router_energy_joules_total", "counter", "Energy that a replica's GPUs took, idle and all, since (NVML)."
)
POWER = Family("qplan_router_power_watts", "gauge", "Power of a replica's GPUs now (NVML).")
AWAKE = Family("qplan_router_awake_wanted", "gauge", "Replicas of a group that the policy wants awake at this load.")
RESTING = Family(
    "qplan_router_replica_resting", "gauge", "Processes of the router that send nothing to a replica: it is to sleep."
)
SLEEP_ORDERS = Family(
    "qplan_router_sleep_orders_total", "counter", "Orders to sleep and to wake, by what came of them."
)
RELOADS = Family("qplan_router_reloads_total", "counter", "Reloads of policy and fleet, by what came of them.")
IN_FLIGHT = Family("qplan_router_in_flight", "gauge", "Requests under way at a replica.")
WAITING = Family("qplan_router_waiting", "gauge", "Requests that wait for a replica.")
CONNECTIONS = Family("qplan_router_connections", "gauge", "Connections of clients.")
UP = Family("qplan_router_replica_up", "gauge", "Processes of the router for which the replica's circuit is closed.")
TTFT = Family("qplan_router_ttft_seconds", "histogram", "From sending to a replica to its first event.", _SECONDS)
TPOT = Family("qplan_router_tpot_seconds", "histogram", "Time per output token after the first.", _SHORT_S)
E2E = Family("qplan_router_e2e_seconds", "histogram", "From a request's arrival to the end of its answer.", _SECONDS)
HELD = Family("qplan_router_held_seconds", "histogram", "From a request's arrival to its dispatch.", _SHORT_S)
TTFT_RATIO = Family("qplan_router_ttft_observed_ratio", "histogram", "Observed TTFT over the predicted.", _RATIOS)
TPOT_RATIO = Family("qplan_router_tpot_observed_ratio", "histogram", "Observed TPOT over the predicted.", _RATIOS)
FAMILIES = (
    REQUESTS, ATTEMPTS, TOKENS, PREDICTED_ENERGY, PREDICTED_IDLE, ENERGY, POWER, RELOADS, IN_FLIGHT, WAITING,
    CONNECTIONS, UP, AWAKE, RESTING, SLEEP_ORDERS,
    TTFT, TPOT, E2E, HELD, TTFT_RATIO, TPOT_RATIO,
)  # fmt: skip

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, list[float]]
"""Name of the family, labels, and the value; of a histogram the counts of its buckets, the last for all above, and the
sum."""


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], list[float]] = {}

    def add(self, family: Family, amount: float = 1.0, /, **labels: str) -> None:
        """Add to a counter."""
        key = family.name, tuple(labels.items())
        found = self._values.get(key)
        if found is None:
            self._values[key] = [amount]
        else:
            found[0] += amount

    def set(self, family: Family, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        self._values[family.name, tuple(labels.items())] = [value]

    def observe(self, family: Family, value: float, /, **labels: str) -> None:
        """Add a value to a histogram."""
        key = family.name, tuple(labels.items())
        found = self._values.get(key)
        if found is None:
            found = self._values[key] = [0.0] * (len(family.bounds) + 2)
        found[bisect_left(family.bounds, value)] += 1
        found[-1] += value

    def forget(self, **labels: str) -> None:
        """Drop the gauges with these labels: of a replica that left the fleet."""
        wanted, gauges = set(labels.items()), {family.name for family in FAMILIES if family.kind == "gauge"}
        for key in [key for key in self._values if key[0] in gauges and wanted <= set(key[1])]:
            del self._values[key]

    def drop(self, family: Family, **labels: str) -> None:
        """Drop the series of one family with these labels: what is not known any more is not told."""
        wanted = set(labels.items())
        for key in [key for key in self._values if key[0] == family.name and wanted <= set(key[1])]:
            del self._values[key]

    def samples(self) -> list[Sample]:
        """Return all there is."""
        return [(name, labels, list(value)) for (name, labels), value in self._values.items()]


def merge(parts: Iterable[Iterable[Any]]) -> list[Sample]:
    """Add up the samples of several processes, also as JSON makes them: lists for tuples."""
    total: dict[tuple[str, Labels], list[float]] = {}
    for part in parts:
        for name, labels, value in part:
            key = str(name), tuple((str(label), str(text)) for label, text in labels)
            before = total.get(key)
            total[key] = list(value) if before is None else [a + b for a, b in zip(before, value, strict=True)]
    return [(name, labels, value) for (name, labels), value in total.items()]


def render(samples: Iterable[Sample]) -> str:
    """Return samples in Prometheus' text format."""
    by_family: dict[str, list[tuple[Labels, list[float]]]] = {}
    for name, labels, value in samples:
        by_family.setdefault(name, []).append((labels, value))
    lines: list[str] = []
    for family in FAMILIES:
        found = by_family.get(family.name)
        if found:
            lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
            for labels, value in sorted(found):
                lines += _lines(family, labels, value)
    return "\n".join(lines) + "\n"


def _lines(family: Family, labels: Labels, value: list[float]) -> list[str]:
    if family.kind != "histogram":
        return [f"{family.name}{_braces(labels)} {value[0]:.12g}"]
    lines, total = [], 0.0
    for bound, count in zip((*family.bounds, "+Inf"), value, strict=False):
        total += count
        lines.append(f"{family.name}_bucket{_braces((*labels, ('le', str(bound))))} {total:.12g}")
    lines.append(f"{family.name}_sum{_braces(labels)} {value[-1]:.12g}")
    lines.append(f"{family.name}_count{_braces(labels)} {total:.12g}")
    return lines


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, text in labels)
    return "{" + ",".join(f'{name}="{text}"' for name, text in escaped) + "}"
