"""What a simulated fleet did, on the terminal or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.units import format_duration
from qplan.report.output import console, facts_table, print_json

if TYPE_CHECKING:
    from qplan.models.simulator.simulation import FleetUse, ReplicaUse
    from qplan.models.simulator.summary import Summary

SCHEMA_VERSION = 1
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulation that is over.

    Attributes
    ----------
    source
        What arrived, in words.
    provenance
        What the iteration times stand on.
    warnings
        Why iteration times may be off.
    power_note
        Why watts are unknown, if they are.
    """

    source: str
    dispatch: str
    seed: int
    summary: Summary
    use: FleetUse
    provenance: tuple[str, ...]
    warnings: tuple[str, ...]
    power_note: str

    @property
    def output_tokens_per_s(self) -> float:
        """Generated tokens per second from 0 to the end of the last request."""
        return sum(one.output_tokens for one in self.use.replicas) / self.use.end_s if self.use.end_s else 0.0


def print_simulation(simulated: Simulated, plot: Path | None = None, *, as_json: bool) -> None:
    """Print what came of a simulation; `plot` is where a figure was written."""
    if as_json:
        print_json(to_json(simulated))
        return
    from rich import box
    from rich.table import Table

    out, summary, use = console(), simulated.summary, simulated.use
    served = summary.requests - summary.rejected
    out.print(
        f"[bold]{summary.requests:,}[/bold] requests ({simulated.source}) in {use.end_s:,.1f} s on "
        f"{len(use.replicas)} replicas, {simulated.dispatch}: {served / use.end_s if use.end_s else 0:.3g} req/s, "
        f"{simulated.output_tokens_per_s:,.0f} output tokens/s"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("latency", "mean", *(f"p{p}" for p in PERCENTILES)):
        table.add_column(title, justify="left" if title == "latency" else "right")
    for metric, sketch in summary.latencies.items():
        values = (sketch.mean, *map(sketch.percentile, PERCENTILES))
        table.add_row(metric.upper(), *(format_duration(value) if sketch.count else "—" for value in values))
    out.print(table)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("replica", "requests", "busy", "running", "tokens/s", "W", "J/token"):
        table.add_column(title, justify="left" if title == "replica" else "right")
    for replica in use.replicas:
        table.add_row(*_cells(replica, use.end_s))
    out.print(table)
    _print_facts(simulated, plot)


def _print_facts(simulated: Simulated, plot: Path | None) -> None:
    summary, energy_j = simulated.summary, simulated.use.energy_j
    facts = facts_table()
    for slo, met in zip(summary.slos, summary.met, strict=True):
        share = met / max(summary.requests, 1)
        verdict = ""
        if slo.percentile is not None:
            verdict = "; [green]met[/green]" if share >= slo.percentile / 100 else "; [red]missed[/red]"
        facts.add_row(f"{slo}", f"{share:.2%} of requests{verdict}")
    if summary.rejected:
        facts.add_row("[yellow]refused[/yellow]", f"{summary.rejected:,} requests longer than KV cache or context")
    if summary.preemptions:
        facts.add_row("preemptions", f"{summary.preemptions:,}: the KV cache ran out, and a sequence started again")
    if energy_j is None:
        facts.add_row("power", f"unknown: {simulated.power_note}")
    elif simulated.use.end_s:
        facts.add_row("power", f"{energy_j / simulated.use.end_s:,.0f} W in the mean, {energy_j / 3.6e6:.3g} kWh")
    for number, source in enumerate(simulated.provenance):
        facts.add_row("step times" if number == 0 else "", source)
    for warning in simulated.warnings:
        facts.add_row("[yellow]warning[/yellow]", warning)
    facts.add_row("", "simulated: batching as configured, no network, tokenizer or scheduler overhead")
    if plot is not None:
        facts.add_row("figure", f"{plot}")
    console().print(facts)


def to_json(simulated: Simulated) -> dict[str, Any]:
    """Return what came of a simulation as data; what is unknown is null."""
    summary, use = simulated.summary, simulated.use
    known = bool(summary.slos)
    return {
        "schema_version": SCHEMA_VERSION,
        "source": simulated.source,
        "dispatch": simulated.dispatch,
        "seed": simulated.seed,
        "requests": summary.requests,
        "refused": summary.rejected,
        "preemptions": summary.preemptions,
        "duration_s": use.end_s,
        "output_tokens_per_s": simulated.output_tokens_per_s,
        "latency": {
            metric: {"mean_s": sketch.mean, **{f"p{p}_s": sketch.percentile(p) for p in PERCENTILES}}
            for metric, sketch in summary.latencies.items()
        },
        "slos": [
            {"slo": str(slo), "attainment": met / summary.requests if summary.requests else None}
            for slo, met in zip(summary.slos, summary.met, strict=True)
        ],
        "attainment": summary.met_all / summary.requests if known and summary.requests else None,
        "goodput_qps": summary.met_all / use.end_s if known and use.end_s else None,
        "energy_j": use.energy_j,
        "energy_note": simulated.power_note or None,
        "replicas": [_replica(replica, use.end_s) for replica in use.replicas],
        "provenance": ["simulated", *simulated.provenance],
        "warnings": list(simulated.warnings),
    }


def _replica(replica: ReplicaUse, end_s: float) -> dict[str, Any]:
    return {
        "replica": replica.name,
        "requests": replica.requests,
        "busy": replica.busy_s / end_s if end_s else 0.0,
        "energy_j": replica.energy_j,
        "series": {
            "bin_s": replica.bin_s,
            "busy": replica.busy.tolist(),
            "running": replica.running.tolist(),
            "output_tokens_per_s": replica.output_tokens_per_s.tolist(),
            "power_w": None if replica.power_w is None else replica.power_w.tolist(),
        },
    }


def _cells(replica: ReplicaUse, end_s: float) -> tuple[str, ...]:
    end_s = max(end_s, 1e-300)
    watts = "—" if replica.energy_j is None else f"{replica.energy_j / end_s:.0f}"
    joules = (
        "—" if not (replica.energy_j and replica.output_tokens) else f"{replica.energy_j / replica.output_tokens:.3g}"
    )
    return (
        replica.name,
        f"{replica.requests:,}",
        f"{replica.busy_s / end_s:.0%}",
        f"{replica.running_s / end_s:.1f}",
        f"{replica.output_tokens / end_s:,.0f}",
        watts,
        joules,
    )
