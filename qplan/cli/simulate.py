"""``qplan simulate``: replay a trace, or a load, through a fleet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli.examples import example_option
from qplan.core.errors import InputError, nearest

if TYPE_CHECKING:
    from qplan.models.simulator.dispatch import Dispatch
    from qplan.models.simulator.traffic import Traffic

EXAMPLES = """
[bold]Examples[/bold]

  qplan simulate --example > fleet.json; qplan simulate trace.csv --fleet fleet.json

  qplan simulate trace.csv --fleet fleet.json --speed-up 4 --slo p99:ttft=1s --slo tpot=50ms --plot replay.png

  qplan simulate --qps 3 --workload chat --duration 10min --fleet fleet.json --dispatch least-outstanding --json

  qplan capacity --qps 40 --slo ttft=1s --json > plan.json && qplan simulate --qps 40 --fleet plan.json --slo ttft=1s

[bold]A fleet[/bold]

  {"schema_version": 1, "replicas": [{"model": "llama-2-13b", "quantization": "W4A16", "gpu": "h100", "count": 2}]}

  Groups may also say tp, engine, engine_version, weight, kv_tokens, max_sequences, max_batched_tokens, block_tokens,
  chunked_prefill; and role, prefill or decode, with "kv_transfer": {"bandwidth_gb_s": 50, "latency_s": 0.001}.
"""
DEFAULT_REQUESTS = 10_000
_PROGRESS_CHUNK = 65536


def _example() -> str:
    from qplan.models.simulator.fleetfile import EXAMPLE

    return EXAMPLE


def simulate(
    trace: Annotated[
        Path | None, typer.Argument(help="Trace to replay: CSV as Azure's, JSONL as Mooncake's.", metavar="[TRACE]")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="Fleet (JSON), or a plan of qplan capacity --json.", metavar="FILE")
    ] = None,
    qps: Annotated[
        str | None, typer.Option("--qps", help="Poisson arrivals at this rate, instead of a trace.", metavar="RATE")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help="With --qps: chat, code, summarization; isl=512,osl=128; a trace.", metavar="MIX")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="So many requests, and no more.", metavar="N")] = None,
    duration: Annotated[str | None, typer.Option(help="Requests of this time, and no more.", metavar="TIME")] = None,
    speed_up: Annotated[float, typer.Option(help="Replay the trace so many times as fast.", metavar="X")] = 1.0,
    slo: Annotated[
        list[str] | None, typer.Option(help="Show attainment of ttft=1s, p99:tpot=50ms ...; repeatable.", metavar="SLO")
    ] = None,
    dispatch: Annotated[
        str, typer.Option(help="round-robin, least-outstanding, random or power-of-two.", metavar="POLICY")
    ] = "round-robin",
    chunked_prefill: Annotated[
        bool | None,
        typer.Option(
            "--chunked-prefill/--no-chunked-prefill",
            help="Prefill in pieces beside decoding, or whole prompts first.",
            show_default="chunked, unless the fleet says",
        ),
    ] = None,
    profiles: Annotated[str, typer.Option(help="Pack with step times, by name or path.", metavar="PACK")] = (
        "trtllm-composed"
    ),
    fitted: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What qplan fit saved, for what the profiles lack; else the shipped model.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, lengths and random dispatch.", metavar="N")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw latencies, load and power over time (.png or .html).", metavar="FILE")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    example: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, example_option(_example, "Print a fleet to begin with.")
    ] = False,
) -> None:
    """Simulate a fleet request by request: what latencies, load and power a trace would see."""
    from qplan.core.slo import Slo
    from qplan.models.simulator.fleetfile import make_fleet, read_fleet
    from qplan.models.simulator.summary import Summary
    from qplan.report.figure_files import check_plot, write_figure
    from qplan.report.measuring import progress_bar
    from qplan.report.simulation import Simulated, print_simulation
    from qplan.report.simulation_plots import Recorder, draw

    if fleet is None:
        raise InputError(
            "--fleet: which replicas serve? expected a fleet (JSON; --example prints one) or a plan of capacity --json"
        )
    if plot is not None:
        check_plot(plot)
    policy = _dispatch(dispatch)
    summary = Summary(Slo.parse_all(slo or ()))
    source, total, parts = _traffic(trace, qps, workload, requests, duration, speed_up, seed)
    served_by = make_fleet(read_fleet(fleet), profiles, fitted, chunked_prefill=chunked_prefill)
    runner, recorder = served_by.runner(policy, seed), Recorder() if plot is not None else None
    with progress_bar("requests", total) as advance:
        for part in parts:
            done = runner.offer(part)
            summary.add(done)
            if recorder is not None:
                recorder.add(done)
            advance(len(part))
        done = runner.finish()
        summary.add(done)
        if recorder is not None:
            recorder.add(done)
    said = served_by.provenance, served_by.warnings, served_by.power_note
    simulated = Simulated(source, policy.value, seed, summary, runner.use(), *said)
    if plot is not None and recorder is not None:
        write_figure(plot, draw(recorder.columns(), simulated))
    print_simulation(simulated, plot, as_json=json_output)


simulate.__doc__ = f"{simulate.__doc__}\n{EXAMPLES}"


def _dispatch(text: str) -> Dispatch:
    from qplan.models.simulator.dispatch import Dispatch

    try:
        return Dispatch(text.strip().casefold())
    except ValueError:
        names = [policy.value for policy in Dispatch]
        raise InputError(
            f"--dispatch: unknown policy '{text}'; expected {', '.join(names)}{nearest(text, names)}"
        ) from None


def _traffic(
    trace: Path | None,
    qps: str | None,
    workload: str | None,
    requests: int | None,
    duration: str | None,
    speed_up: float,
    seed: int,
) -> tuple[str, int, Iterator[Traffic]]:
    """Return what the requests are, how many (0 where that is drawn), and the requests in pieces."""
    import math

    from qplan.core.units import parse_duration, parse_rate
    from qplan.models.simulator.traffic import poisson
    from qplan.profiles.workloads import read_workload

    duration_s = math.inf if duration is None else parse_duration(duration, "--duration")
    if not duration_s > 0:
        raise InputError(f"--duration: '{duration}'; expected more than 0")
    if (trace is None) == (qps is None):
        raise InputError("what arrives? expected either a trace or --qps")
    if trace is not None:
        if workload is not None:
            raise InputError("--workload: a trace has its own lengths; expected it with --qps only")
        return trace.name, *_replayed(trace, requests, duration_s, speed_up)
    assert qps is not None
    rate = parse_rate(qps, "--qps")
    if not rate > 0:
        raise InputError(f"--qps: '{qps}'; expected more than 0")
    if speed_up != 1.0:
        raise InputError("--speed-up: expected with a trace only; give a higher --qps")
    mix = read_workload(workload or "chat")
    if requests is None and duration is None:
        requests = DEFAULT_REQUESTS
    expected = requests or round(rate * duration_s)
    parts = poisson(mix, rate, requests=requests, duration_s=duration_s, seed=seed)
    return f"{mix.name} at {rate:g} req/s", expected, parts


def _replayed(path: Path, requests: int | None, duration_s: float, speed_up: float) -> tuple[int, Iterator[Traffic]]:
    import numpy as np

    from qplan.measure.load.traces import read_trace
    from qplan.models.simulator.traffic import Traffic

    if not (np.isfinite(speed_up) and speed_up > 0):
        raise InputError(f"--speed-up: {speed_up:g}; expected more than 0")
    trace = read_trace(path, "trace")
    whole = Traffic(trace.schedule(speed_up), trace.input_tokens, trace.output_tokens)
    count = int(np.searchsorted(whole.arrivals_s, duration_s))
    count = count if requests is None else min(count, requests)
    parts = (whole.part(at, min(at + _PROGRESS_CHUNK, count)) for at in range(0, count, _PROGRESS_CHUNK))
    return count, parts
