"""``qplan measure load | saturation | quality | energy | report``: one thing of a server that runs, and its report."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplan.cli.interrupts import INTERRUPTED, interrupts
from qplan.core.errors import InputError, MeasurementError, nearest

if TYPE_CHECKING:
    from qplan.measure.campaign.points import Point
    from qplan.measure.campaign.single import Conditions, Identity
    from qplan.measure.endpoint import Endpoint

COMMANDS = ("load", "saturation", "quality", "energy", "report")


def _checked_seed(seed: int) -> int:
    """Return a seed that engines take; a range here would take the help's width."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed: {seed}; expected from 0 to {2**32 - 1}")
    return seed


Url = Annotated[str, typer.Option("--url", metavar="URL", help="The server, such as http://host:8000.")]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Model to ask; by default its only one.")
]
Api = Annotated[str, typer.Option("--api", help="completions, or chat.")]
KeyVariable = Annotated[
    str, typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable that holds the API key.")
]
Mix = Annotated[
    str,
    typer.Option(
        "--workload", metavar="MIX", help="chat, code, summarization; isl=512,osl=128; a trace; sharegpt or a data set."
    ),
]
ArrivalsText = Annotated[
    str, typer.Option("--arrivals", metavar="PROCESS", help="poisson, constant, gamma:cv=2 or ramp:to=2x.")
]
Slos = Annotated[
    list[str] | None, typer.Option("--slo", metavar="SLO", help="Such as p99:ttft=1s or tpot=50ms; repeatable.")
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", callback=_checked_seed, help="Of arrivals, prompts and sampling.")
]
Timeout = Annotated[str, typer.Option("--timeout", metavar="TIME", help="Longest time of a request.")]
Processes = Annotated[int, typer.Option("--processes", min=1, max=256, help="Load-generating processes.")]
KeepIn = Annotated[
    str | None, typer.Option("--store", metavar="STORE", help="Keep the observation; needs --quant, --gpu, --engine.")
]
Quant = Annotated[str | None, typer.Option("--quant", metavar="NAME", help="What is served: BF16, W4A16 ...")]
GpuName = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="What serves: h100, cpu ...")]
Tp = Annotated[int, typer.Option("--tp", min=1, help="GPUs that one replica spans.")]
EngineName = Annotated[str | None, typer.Option("--engine", metavar="NAME", help="vllm, trtllm, sglang ...")]
EngineVersion = Annotated[str, typer.Option("--engine-version", metavar="VERSION", help="Of that engine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_KEY = "OPENAI_API_KEY"


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("load")(load)
    app.command("saturation")(saturation)
    app.command("quality")(quality)
    app.command("energy")(energy)
    app.command("report")(report)


def load(
    url: Url,
    qps: Annotated[str, typer.Option("--qps", metavar="RATE", help="Requests per second, open loop.")],
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long; 30s unless --requests is given.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many requests instead.")] = None,
    warm_up: Annotated[
        str | None, typer.Option(metavar="TIME", help="Left out; found from the run by default.")
    ] = None,
    workload: Mix = "chat",
    arrivals: ArrivalsText = "poisson",
    slo: Slos = None,
    model: ModelName = None,
    api: Api = "completions",
    api_key_env: KeyVariable = DEFAULT_KEY,
    timeout: Timeout = "120s",
    processes: Processes = 1,
    seed: Seed = 0,
    store: KeepIn = None,
    quant: Quant = None,
    gpu: GpuName = None,
    tp: Tp = 1,
    engine: EngineName = None,
    engine_version: EngineVersion = "unknown",
    as_json: AsJson = False,
) -> None:
    """Offer one load to a server and show latencies, throughput and SLO attainment.

    Example: qplan measure load --url http://host:8000 --qps 5 --duration 30s --workload chat --slo p99:ttft=1s
    """
    from qplan.core.units import parse_duration, parse_rate
    from qplan.measure.campaign.points import LOAD, Point
    from qplan.measure.campaign.single import Conditions

    if duration is not None and requests is not None:
        raise InputError("--requests: a load has a duration or a number of requests, not both")
    rate = parse_rate(qps, "--qps")
    if rate <= 0:
        raise InputError(f"--qps: '{qps}'; expected more than 0")
    seconds = None if requests is not None else _positive(duration or "30s", "--duration")
    left_out_s = None if warm_up is None else parse_duration(warm_up, "--warm-up")
    if left_out_s is not None and not 0 <= left_out_s < (seconds or math.inf):
        raise InputError(f"--warm-up: '{warm_up}'; expected from 0 to less than the load's duration")
    names = _identity(quant, gpu, tp, engine, engine_version, store)
    mix, process, objectives = _checked(workload, arrivals, slo)
    endpoint = _endpoint(url, model, api, api_key_env)
    point = Point(
        names.target(endpoint),
        LOAD,
        0,
        workload=mix,
        source=workload,
        qps=rate,
        arrivals=process,
        slo=objectives,
        duration_s=seconds,
        requests=requests,
        warm_up_s=left_out_s,
        seed=seed,
    )
    conditions = Conditions(request_s=_positive(timeout, "--timeout"), processes=processes)
    _measure(endpoint, point, names, conditions, store, as_json=as_json)


def saturation(
    url: Url,
    slo: Annotated[
        list[str], typer.Option("--slo", metavar="SLO", help="Such as p99:ttft=1s or tpot=50ms; repeatable.")
    ],
    attainment: Annotated[
        str, typer.Option(metavar="SHARE", help="Of requests, for SLOs without a percentile.")
    ] = "95%",
    budget: Annotated[str, typer.Option(metavar="TIME", help="Longest time of the search.")] = "10min",
    workload: Mix = "chat",
    arrivals: ArrivalsText = "poisson",
    model: ModelName = None,
    api: Api = "completions",
    api_key_env: KeyVariable = DEFAULT_KEY,
    timeout: Timeout = "120s",
    processes: Processes = 1,
    seed: Seed = 0,
    store: KeepIn = None,
    quant: Quant = None,
    gpu: GpuName = None,
    tp: Tp = 1,
    engine: EngineName = None,
    engine_version: EngineVersion = "unknown",
    as_json: AsJson = False,
) -> None:
    """Find the highest request rate at which a server meets the SLOs, as an interval.

    Example: qplan measure saturation --url http://host:8000 --slo p99:ttft=1s --slo p90:tpot=50ms --workload chat
    """
    from qplan.core.units import parse_fraction
    from qplan.measure.campaign.points import SATURATION, Point
    from qplan.measure.campaign.single import Conditions

    share = parse_fraction(attainment, "--attainment")
    if not 0 < share < 1:
        raise InputError(f"--attainment: '{attainment}'; expected a share between 0 and 1, such as 95%")
    names = _identity(quant, gpu, tp, engine, engine_version, store)
    mix, process, objectives = _checked(workload, arrivals, slo)
    conditions = Conditions(
        request_s=_positive(timeout, "--timeout"), limit_s=_positive(budget, "--budget"), processes=processes
    )
    endpoint = _endpoint(url, model, api, api_key_env)
    point = Point(
        names.target(endpoint),
        SATURATION,
        0,
        workload=mix,
        source=workload,
        arrivals=process,
        slo=objectives,
        attainment=share,
        seed=seed,
    )
    _measure(endpoint, point, names, conditions, store, as_json=as_json)


def quality(
    url: Url,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK", help="perplexity:english, choice:sample, humaneval ...; repeatable."),
    ] = None,
    model: ModelName = None,
    api: Api = "chat",
    api_key_env: KeyVariable = DEFAULT_KEY,
    limit: Annotated[str, typer.Option(metavar="TIME", help="Longest time of a task.")] = "1h",
    seed: Seed = 0,
    store: KeepIn = None,
    quant: Quant = None,
    gpu: GpuName = None,
    tp: Tp = 1,
    engine: EngineName = None,
    engine_version: EngineVersion = "unknown",
    as_json: AsJson = False,
) -> None:
    """Judge a server's answers on tasks.

    Example: qplan measure quality --url http://host:8000 --task choice:sample --task "math:sample[:10]"
    """
    from qplan.measure.campaign.points import QUALITY, Point
    from qplan.measure.campaign.single import Conditions
    from qplan.measure.quality import open_task

    tasks = task or ["choice:sample", "instructions:sample", "math:sample"]
    for name in tasks:
        open_task(name, "--task")
    names = _identity(quant, gpu, tp, engine, engine_version, store)
    conditions = Conditions(limit_s=_positive(limit, "--limit"))
    endpoint = _endpoint(url, model, api, api_key_env)
    for name in tasks:
        point = Point(names.target(endpoint), QUALITY, 0, task=name, seed=seed, api=api)
        _measure(endpoint, point, names, conditions, store, as_json=as_json)


def energy(
    duration: Annotated[str, typer.Option(metavar="TIME", help="Window to measure; 30s or more is wise.")] = "30s",
    devices: Annotated[
        str | None, typer.Option(metavar="LIST", help="GPUs by index: 0,1; all of them by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the energy that this machine's GPUs, or its CPU, take from now on.

    Example: qplan measure energy --duration 60s --devices 0,1
    """
    from dataclasses import asdict

    from qplan.measure.energy import open_meter
    from qplan.measure.energy.meter import measure_energy
    from qplan.report.measuring import progress_bar
    from qplan.report.output import print_json, print_table

    seconds = _positive(duration, "--duration")
    chosen = None
    if devices is not None:
        parts = [part.strip() for part in devices.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise InputError(f"--devices: cannot read '{devices}'; expected indices such as 0,1")
        chosen = [int(part) for part in parts]
    with open_meter(chosen) as meter, progress_bar("measuring energy", seconds) as advance:
        reading = measure_energy(meter, seconds, advance)
    if as_json:
        print_json({"schema_version": 1, "power_w": reading.power_w, "energy_j": reading.energy_j, **asdict(reading)})
    else:
        figures = {"energy_j": reading.energy_j, "power_w": reading.power_w, **asdict(reading)}
        del figures["start_s"], figures["end_s"]  # of a clock that starts anywhere
        print_table(("what", "value"), [(name, value) for name, value in figures.items() if value not in (None, ())])
    if reading.energy_j is None:
        raise MeasurementError(reading.note or "no energy could be measured")


def report(
    name: Annotated[str, typer.Argument(metavar="STORE|PACK", help="Store, or pack.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="report.html, trend.png, or a folder.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "qplan: measured",
    as_json: AsJson = False,
) -> None:
    """Show what was measured: bits against perplexity and saturation, latency and energy against load.

    Example: qplan measure report profiles.db -o report.html
    """
    from qplan.profiles.sources import read_profiles
    from qplan.report.measured import print_measured, write_report

    observations = read_profiles(name).table
    if out is None or as_json:
        print_measured(observations, as_json=as_json)
    if out is not None:
        for written in write_report(observations, out, title=title):
            typer.echo(f"wrote {written}", err=as_json)


def _measure(
    endpoint: Endpoint, point: Point, names: Identity, conditions: Conditions, store: str | None, *, as_json: bool
) -> None:
    """Measure a point, print it, and keep it where that was asked for."""
    from qplan.measure.campaign.block import Stopped
    from qplan.measure.campaign.single import keep_rows, measure_single
    from qplan.profiles.store import ProfileStore
    from qplan.report.measuring import PointBar, print_result

    if store is not None:
        with ProfileStore(store) as opened, opened.transaction(write=True):
            pass  # what cannot be kept is said before it is measured
    with interrupts() as stopping, PointBar(str(point)) as bar:
        try:
            result = measure_single(endpoint, point, names, conditions, emit=bar.take, stopping=stopping)
        except Stopped:
            raise typer.Exit(INTERRUPTED) from None
    print_result(result, as_json=as_json)
    if store is not None:
        with ProfileStore(store) as opened:
            keep_rows(opened, result)
    if result.state != "done":
        raise MeasurementError(f"{result.state}: {result.reason}")


def _endpoint(url: str, model: str | None, api: str, key_variable: str) -> Endpoint:
    from dataclasses import replace

    from qplan.measure.campaign.single import find_model
    from qplan.measure.endpoint import APIS, Endpoint

    if api not in APIS:
        raise InputError(f"--api: unknown API '{api}'; expected one of {', '.join(APIS)}{nearest(api, APIS)}")

    if key_variable != DEFAULT_KEY and key_variable not in os.environ:
        raise InputError(f"--api-key-env: the environment has no variable {key_variable}")
    endpoint = Endpoint.parse(url, model or "", api, os.environ.get(key_variable))
    return endpoint if model else replace(endpoint, model=find_model(endpoint))


def _identity(
    quant: str | None, gpu: str | None, tp: int, engine: str | None, engine_version: str, store: str | None
) -> Identity:
    from qplan.core.gpu import Gpu
    from qplan.core.quantization import Quantization
    from qplan.measure.campaign.single import Identity, require_names

    given: dict[str, Any] = {
        "quantization": None if quant is None else str(Quantization.parse(quant)),
        "gpu": None if gpu is None else Gpu.named(gpu).name,
        "engine": engine,
    }
    known = {name: value for name, value in given.items() if value is not None}
    names = Identity(**known, tp=tp, engine_version=engine_version)
    if store is not None:
        require_names(names)
    return names


def _checked(workload: str, arrivals: str, slo: list[str] | None) -> tuple[str, str, str]:
    """Check what is asked before a server is; return the workload's name, the arrivals and the SLOs."""
    from qplan.core.slo import Slo
    from qplan.measure.campaign.traffic import check_source
    from qplan.measure.load.arrivals import Arrivals

    mix = check_source(workload, "--workload")
    slos = ",".join(map(str, Slo.parse_all(slo or ())))
    return mix, str(Arrivals.parse(arrivals)), slos


def _positive(text: str, where: str) -> float:
    from qplan.core.units import parse_duration

    seconds = parse_duration(text, where)
    if seconds <= 0:
        raise InputError(f"{where}: '{text}'; expected more than 0")
    return seconds
