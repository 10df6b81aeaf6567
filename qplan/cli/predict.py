"""``qplan predict``: what one deployment would do at a load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.core.errors import InputError, nearest

if TYPE_CHECKING:
    from qplan.core.gpu import Gpu
    from qplan.core.workload import Workload
    from qplan.models.surrogates import Surrogates

EXAMPLES = """
[bold]Examples[/bold]

  qplan predict --model llama-2-70b --quant W4A16 --gpu h100 --tp 2 --isl 1024 --osl 256 --qps 3

  qplan predict --model llama-2-13b --quant W8A8-FP --gpu h100 --workload chat --qps 5 --plot load.png

  qplan predict --model llama-2-7b --quant BF16 --gpu a100 --workload code --qps 2 --fitted ours.qplan --json
"""


def predict(
    model: Annotated[str, typer.Option(help="Model of the catalogue, or a config.json.", metavar="NAME")],
    quant: Annotated[str, typer.Option(help="Quantization, such as W4A16 or W8A8KV8-FP.", metavar="NAME")],
    gpu: Annotated[str, typer.Option(help="GPU of the catalogue.", metavar="NAME")],
    qps: Annotated[str, typer.Option("--qps", help="Requests per second of this replica.", metavar="RATE")],
    tp: Annotated[int, typer.Option(help="GPUs that the replica spans.", min=1)] = 1,
    isl: Annotated[int | None, typer.Option(help="Prompt tokens of every request.", min=1, metavar="TOKENS")] = None,
    osl: Annotated[int | None, typer.Option(help="Tokens it generates.", min=1, metavar="TOKENS")] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="Instead: chat, code, summarization; a trace (CSV); or a dataset.", metavar="MIX"),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Engine, where several were profiled: NAME or NAME=VERSION.", metavar="NAME")
    ] = None,
    fitted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What qplan fit saved; by default the shipped model.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw latency and energy over load: PNG, SVG or PDF.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict latency, throughput, power, energy and quality of one deployment at a load, each with its interval."""
    from qplan.core.deployment import Deployment
    from qplan.core.gpu import Gpu
    from qplan.core.model import Model
    from qplan.core.quantization import Quantization
    from qplan.core.units import parse_rate
    from qplan.models.forecast import forecast
    from qplan.models.surrogates import open_fitted
    from qplan.report.forecasts import draw_forecast, print_forecast

    mix = _workload(workload, isl, osl)
    surrogates = open_fitted(fitted)
    named = Gpu.named(gpu, "--gpu")
    deployment = Deployment(
        Model.named(model, "--model"),
        Quantization.parse(quant, "--quant"),
        named,
        tp,
        *_engine(surrogates, named, engine),
    )
    answering = surrogates.answering(deployment)
    found = forecast(answering, deployment, mix, parse_rate(qps, "--qps"))
    print_forecast(found, as_json=as_json)
    if plot is not None:
        draw_forecast(answering, found, plot)
        typer.echo(f"wrote {plot}", err=as_json)


def _workload(mix: str | None, isl: int | None, osl: int | None) -> Workload:
    """Return the workload of the flags, which say it in one of two ways."""
    from qplan.core.workload import Workload
    from qplan.profiles.workloads import read_workload

    if mix is not None and (isl is not None or osl is not None):
        raise InputError("--workload: says the lengths already; leave out --isl and --osl")
    if mix is not None:
        return read_workload(mix)
    if isl is None or osl is None:
        raise InputError("--isl and --osl, or --workload, must say how long requests are: --isl 1024 --osl 256")
    return Workload.fixed(f"isl={isl},osl={osl}")


def _engine(fitted: Surrogates, gpu: Gpu, wanted: str | None) -> tuple[str, str]:
    """Return engine and version: the one asked for, or the only one."""
    known = fitted.engines(gpu)
    names = [f"{name}={version}" for name, version in known]
    if wanted is None:
        if len(known) > 1:
            several = "has several" if gpu.name in fitted.gpus else f"has nothing on {gpu} to tell the engine from"
            raise InputError(f"--engine: {fitted.source} {several}; say one of {', '.join(names)}")
        return known[0]
    name, _, version = wanted.partition("=")
    found = [one for one in known if one[0] == name and version in ("", one[1])]
    if len(found) == 1:
        return found[0]
    said = "names several" if found else "is none"
    raise InputError(f"--engine: '{wanted}' {said} of {', '.join(names)}{nearest(wanted, names)}")


predict.__doc__ = f"{predict.__doc__}\n{EXAMPLES}"
