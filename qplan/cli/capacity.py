"""``qplan capacity``: how many GPUs of which kind, running which quantization, for this load and these SLOs."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """
[bold]Examples[/bold]

  qplan capacity --qps 40 --slo ttft=1s

  qplan capacity --qps 40 --slo p99:ttft=1s --slo tpot=50ms --model llama-2-70b --gpus a100=16,h100=8

  qplan capacity --qps 12 --slo ttft=2s --model llama-2-13b --model llama-2-70b --workload code --quality 98%

  qplan capacity --qps 5 --slo ttft=1s --workload isl=512,osl=128 --objective gpus --spare 1 --explain --json
"""


def capacity(
    qps: Annotated[str, typer.Option("--qps", help="Requests per second to serve.", metavar="RATE")],
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="Objective such as ttft=1s or p99:tpot=50ms (ttft, tpot, itl, e2e); repeatable.", metavar="SLO"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model that may serve, or a config.json; repeatable. Quality refers to the first.", metavar="NAME"
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="chat, code, summarization; isl=512,osl=128; a trace (CSV); or a dataset.", metavar="MIX"),
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Percentile of the SLOs that name none.", metavar="P")
    ] = None,
    quality: Annotated[
        str | None, typer.Option(help="Quality floor, of the first model at 16 bits, such as 99%.", metavar="SHARE")
    ] = None,
    quant: Annotated[
        list[str] | None, typer.Option(help="Allow only these quantizations; repeatable.", metavar="NAME")
    ] = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(help="GPUs to be had: a100=16,h100=8; a name alone is without limit.", metavar="LIST"),
    ] = None,
    price: Annotated[list[str] | None, typer.Option(help="Your own $/h per GPU: h100=2.99.", metavar="LIST")] = None,
    objective: Annotated[str, typer.Option(help="What to minimise: cost or gpus.", metavar="WHAT")] = "cost",
    spare: Annotated[int, typer.Option(help="1: the fleet survives the loss of any one replica.", metavar="N")] = 0,
    profiles: Annotated[
        str, typer.Option(help="Pack by name or path, or the URL of a store.", metavar="PACK")
    ] = "trtllm-composed",
    solver: Annotated[str, typer.Option(help="highs, pulp:cbc, pulp:highs or pulp:NAME.", metavar="NAME")] = "highs",
    time_limit: Annotated[str, typer.Option(help="Longest time to solve.", metavar="TIME")] = "20s",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why this plan: what binds, what it is worth.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Size a fleet: how many replicas of which deployment serve this load within these SLOs, at the least cost."""
    from qplan.core.gpu import parse_inventory, parse_prices
    from qplan.core.model import Model
    from qplan.core.quantization import Quantization
    from qplan.core.slo import Slo
    from qplan.core.units import parse_duration, parse_fraction, parse_rate
    from qplan.profiles.workloads import read_workload
    from qplan.report.plans import print_plan
    from qplan.solvers.capacity.ask import CapacityAsk
    from qplan.solvers.capacity.planner import plan_capacity

    ask = CapacityAsk.of(
        parse_rate(qps, "--qps"),
        Slo.parse_all(slo or ()),
        models=[Model.named(name) for name in model or ()],
        workload=read_workload(workload) if workload else None,
        quality_floor=parse_fraction(quality, "--quality") if quality else None,
        quantizations=[Quantization.parse(name) for name in quant or ()],
        inventory=parse_inventory(tuple(gpus)) if gpus else None,
        prices=parse_prices(tuple(price or ())),
        objective=objective,
        spare=spare,
        percentile=percentile,
        profiles=profiles,
    )
    seconds = parse_duration(time_limit, "--time-limit")
    answer = plan_capacity(ask, solver=solver, time_limit_s=seconds, why=explain)
    print_plan(answer.plan, answer.explanation, as_json=json_output)
    if answer.plan.status == "infeasible":
        raise typer.Exit(3)


capacity.__doc__ = f"{capacity.__doc__}\n{EXAMPLES}"
