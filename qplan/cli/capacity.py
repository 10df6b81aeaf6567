"""``qplan capacity``: how many GPUs of which kind, running which quantization, for this load and these SLOs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplan.cli.examples import example_option

EXAMPLES = """
[bold]Examples[/bold]

  qplan capacity --qps 40 --slo ttft=1s

  qplan capacity --qps 40 --slo p99:ttft=1s --slo tpot=50ms --model llama-2-70b --gpus a100=16,h100=8

  qplan capacity --qps 12 --slo ttft=2s --model llama-2-13b --model llama-2-70b --workload code --quality 98%

  qplan capacity --qps 5 --slo ttft=1s --workload isl=512,osl=128 --objective gpus --spare 1 --explain --json

  qplan capacity --example > demand.yaml; qplan capacity demand.yaml --verify --plot fleet.png

  qplan capacity demand.yaml --what-if +8h100 --what-if slo.ttft=0.5s

  qplan capacity --qps 40 --slo ttft=1s --sweep qps=10..200 --plot sweep.png
"""


def _example() -> str:
    from qplan.profiles.demands import example

    return example()


def capacity(
    demand: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DEMAND.yaml]",
            help="Request classes, demand by hour, GPUs, prices and limits; flags stand for one class at one rate.",
            show_default=False,
        ),
    ] = None,
    qps: Annotated[str | None, typer.Option("--qps", help="Requests per second to serve.", metavar="RATE")] = None,
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
    objective: Annotated[
        str | None,
        typer.Option(help="What to minimise: cost or gpus; with a demand file also energy or carbon.", metavar="WHAT"),
    ] = None,
    spare: Annotated[
        int | None, typer.Option(help="1: the fleet survives the loss of any one replica.", metavar="N")
    ] = None,
    profiles: Annotated[
        str | None,
        typer.Option(help="Pack by name or path, or the URL of a store; trtllm-composed unless said.", metavar="PACK"),
    ] = None,
    solver: Annotated[str, typer.Option(help="highs, pulp:cbc, pulp:highs or pulp:NAME.", metavar="NAME")] = "highs",
    time_limit: Annotated[str, typer.Option(help="Longest time to solve.", metavar="TIME")] = "20s",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why this plan: what binds, what it is worth.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Simulate the plan, and plan again with more until it holds.")
    ] = False,
    confidence: Annotated[
        float | None,
        typer.Option(help="Keep the SLOs with this probability, given the profiles' known error.", metavar="P"),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Plan for rates in a range: qps=10..200, or qps=10..200/20.", metavar="RANGE")
    ] = None,
    pareto: Annotated[
        str | None,
        typer.Option(help="Trade measures: two or more of cost,gpus,energy,carbon,quality.", metavar="LIST"),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            help="Compare with a change: +1h100, slo.ttft=0.5s, qps=80, price.h100=3; repeatable.",
            metavar="CHANGE",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the fleet by hour, the sweep or the front: .png or .html.", metavar="FILE")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    example: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, example_option(_example, "Print a demand file with every key.")
    ] = False,
) -> None:
    """Size a fleet: how many replicas of which deployment serve this load within these SLOs, at the least cost."""
    from qplan.cli.capacity_fleet import Wanted, overridden, run
    from qplan.core.errors import InputError
    from qplan.core.gpu import parse_inventory, parse_prices
    from qplan.core.model import Model
    from qplan.core.quantization import Quantization
    from qplan.core.slo import Slo
    from qplan.core.units import parse_duration, parse_fraction, parse_rate
    from qplan.profiles.workloads import read_workload
    from qplan.solvers.capacity.ask import DEFAULT_PROFILES, CapacityAsk

    if confidence is not None and not 0.5 <= confidence < 1:
        raise InputError(f"--confidence: {confidence:g}; expected at least 0.5 and below 1, such as 0.95")
    time_limit_s = parse_duration(time_limit, "--time-limit")
    if time_limit_s <= 0:
        raise InputError(f"--time-limit: '{time_limit}'; expected more than 0, such as 20s")
    wanted = Wanted(
        solver=solver,
        time_limit_s=time_limit_s,
        confidence=confidence,
        verify=verify,
        explain=explain,
        sweep=sweep,
        pareto=pareto,
        what_if=tuple(what_if or ()),
        plot=plot,
        as_json=json_output,
    )
    if demand is not None:
        from qplan.profiles.demands import read_demand

        of_flags = {"--qps": qps, "--slo": slo, "--model": model, "--workload": workload, "--percentile": percentile}
        of_flags |= {"--quality": quality, "--quant": quant, "--gpus": gpus, "--price": price}
        for flag, value in of_flags.items():
            if value:
                raise InputError(f"{flag}: {demand} says that; flags beside it are --objective, --spare and --profiles")
        run(overridden(read_demand(demand), objective=objective, spare=spare, profiles=profiles), wanted)
        return
    if qps is None:
        raise InputError("expected --qps RATE, or a demand file; `qplan capacity --example` prints one")
    ask = CapacityAsk.of(
        parse_rate(qps, "--qps"),
        Slo.parse_all(slo or ()),
        models=[Model.named(name) for name in model or ()],
        workload=read_workload(workload) if workload else None,
        quality_floor=parse_fraction(quality, "--quality") if quality else None,
        quantizations=[Quantization.parse(name) for name in quant or ()],
        inventory=parse_inventory(tuple(gpus)) if gpus else None,
        prices=parse_prices(tuple(price or ())),
        objective=objective or "cost",
        spare=spare or 0,
        percentile=percentile,
        profiles=profiles or DEFAULT_PROFILES,
    )
    if wanted.beyond_one_plan:
        from qplan.solvers.fleet.single import demand_of_ask

        run(demand_of_ask(ask), wanted)
        return
    from qplan.report.plans import print_plan
    from qplan.solvers.capacity.planner import plan_capacity

    told = None
    if verify:
        from qplan.report.output import working
        from qplan.solvers.fleet.verified import verified_capacity

        with working("planning, and simulating the plan"):
            verified = verified_capacity(ask, solver=solver, time_limit_s=wanted.time_limit_s, why=explain)
        answer, told = verified.answer, None if verified.tightened is None else verified.tightened.to_json()
    else:
        answer = plan_capacity(ask, solver=solver, time_limit_s=wanted.time_limit_s, why=explain)
    print_plan(answer.plan, answer.explanation, verification=told, as_json=json_output)
    if answer.plan.status == "infeasible":
        raise typer.Exit(3)


capacity.__doc__ = f"{capacity.__doc__}\n{EXAMPLES}"
