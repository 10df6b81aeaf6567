"""``qplan route``: solve for a routing policy, replay a trace under it, and export its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import route_live
from qplan.core.errors import InputError, nearest

if TYPE_CHECKING:
    from qplan.core.demand import Demand
    from qplan.core.policy import Policy
    from qplan.models.simulator.traffic import Traffic
    from qplan.models.steptimes import Ints
    from qplan.solvers.routing.fleet import FleetModel
    from qplan.solvers.routing.replaying import Whole

app = typer.Typer(
    help="Route requests so that a fleet takes the least energy within its SLOs: solve, simulate, export, serve.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

SOLVE_EXAMPLES = """
[bold]Examples[/bold]

  qplan route solve fleet.json demand.yaml -o policy.json

  qplan route solve fleet.json demand.yaml -o policy.json --batch nightly=4h --levels 24

  qplan route solve fleet.json demand.yaml -o policy.json --trace last-week.csv

A fleet is that of qplan simulate, or a plan of qplan capacity --json; a demand is that of qplan capacity.
"""
SIMULATE_EXAMPLES = """
[bold]Examples[/bold]

  qplan route simulate policy.json fleet.json demand.yaml --trace trace.csv --speed-up 2 --plot routing.png

  qplan route simulate policy.json fleet.json demand.yaml --qps 12 --requests 20000 --policy energy --policy random

  qplan route simulate policy.json fleet.json demand.yaml --qps 12 --times-off 1.3 --lengths-off 0.7 --json

  qplan route simulate policy.json fleet.json demand.yaml --qps 12 --routers 4 --turns 4
"""
EXPORT_EXAMPLES = """
[bold]Examples[/bold]

  qplan route export policy.json --load 12qps -o routes.yaml

  qplan route export policy.json --load 12qps --kind weights
"""
DEFAULT_REQUESTS = 10_000
KINDS = ("gateway", "llm-d", "weights")

PolicyFile = Annotated[Path, typer.Argument(metavar="POLICY", help="Policy of qplan route solve.", show_default=False)]
FleetFile = Annotated[Path, typer.Argument(metavar="FLEET", help="Fleet (JSON), or a plan.", show_default=False)]
DemandFile = Annotated[Path, typer.Argument(metavar="DEMAND", help="Demand (YAML).", show_default=False)]
Fitted = Annotated[Path | None, typer.Option(metavar="FILE", help="What qplan fit saved, for what profiles lack.")]
Solver = Annotated[str, typer.Option(metavar="NAME", help="highs, pulp:SOLVER, or another that is installed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RequestClass = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="Class of the trace's requests; default: the first.")
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Of arrivals, lengths and draws.")]


@app.command("solve")
def solve(
    fleet: FleetFile,
    demand: DemandFile,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the policy here.")] = None,
    levels: Annotated[int, typer.Option(min=1, max=200, metavar="N", help="Loads at which to solve.")] = 12,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=TIME", help="A class that may wait so long for a trough or a clean grid; repeatable."
        ),
    ] = None,
    sleep: Annotated[bool, typer.Option("--sleep/--no-sleep", help="Whether replicas may sleep.")] = True,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Requests of the past (CSV as Azure's), by whose bursts it is tried; else Poisson."
        ),
    ] = None,
    request_class: RequestClass = None,
    solver: Solver = "highs",
    fitted: Fitted = None,
    seed: Seed = 0,
    json_output: AsJson = False,
) -> None:
    """Find the policy of a fleet: who serves what, in which order to spill, and who sleeps, by load."""
    from qplan.report.output import print_json, working
    from qplan.report.routing import check_out, print_policy, write_policy
    from qplan.solvers.routing.solving import solve_policy

    if trace is None and request_class is not None:
        raise InputError("--class is that of a trace's requests; expected --trace")
    if out is not None:
        check_out(out)
    asked = _read_demand(demand)
    deadlines = dict(_deadline(text, asked) for text in batch or ())
    with working("simulating replicas, and solving"):
        model, _ = _model(fleet, asked, fitted, seed, sleep=sleep)
        seen = None if trace is None else _seen(model, trace, request_class, seed)
        policy = solve_policy(model, solver=solver, levels=levels, deadlines_s=deadlines, seen=seen, seed=seed)
    if out is not None:
        write_policy(out, policy)
    if json_output:
        print_json(policy.to_json())
    else:
        print_policy(policy, out)


@app.command("simulate")
def simulate(
    policy: PolicyFile,
    fleet: FleetFile,
    demand: DemandFile,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Trace to replay: CSV as Azure's.")] = None,
    request_class: RequestClass = None,
    speed_up: Annotated[float, typer.Option(metavar="X", help="Replay the trace so many times as fast.")] = 1.0,
    qps: Annotated[
        str | None, typer.Option(metavar="RATE", help="Poisson arrivals of the demand, not a trace.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, metavar="N", help="So many requests, and no more.")] = None,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", metavar="NAME", help="Only these; repeatable. Default: all.")
    ] = None,
    bound: Annotated[bool, typer.Option("--bound/--no-bound", help="Compute the clairvoyant bound.")] = True,
    times_off: Annotated[
        float, typer.Option(metavar="X", help="Let the policy take latencies for so many times what they are.")
    ] = 1.0,
    lengths_off: Annotated[
        float, typer.Option(metavar="X", help="Let it expect so many times the output tokens.")
    ] = 1.0,
    routers: Annotated[int, typer.Option(min=1, metavar="N", help="Routers among which requests are spread.")] = 1,
    engine_metrics: Annotated[bool, typer.Option(help="Whether engines tell routers what others sent them.")] = True,
    turns: Annotated[
        float | None, typer.Option(min=1.0, metavar="X", help="With --qps: conversations of so many turns in the mean.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the comparison (.png or .html).")] = None,
    solver: Solver = "highs",
    fitted: Fitted = None,
    seed: Seed = 0,
    json_output: AsJson = False,
) -> None:
    """Replay a trace under a policy and those that people use: energy, SLO attainment and cost side by side."""
    from qplan.report.figure_files import check_plot, write_figure
    from qplan.report.output import working
    from qplan.report.routing import print_replay
    from qplan.report.routing_plots import draw_replay
    from qplan.solvers.backends import open_backend
    from qplan.solvers.routing.compiled import SCRAPE_S
    from qplan.solvers.routing.replaying import POLICIES, replay
    from qplan.solvers.routing.solving import misled

    if plot is not None:
        check_plot(plot)
    if (trace is None) == (qps is None):
        raise InputError("what arrives? expected either --trace or --qps")
    if turns is not None and qps is None:
        raise InputError("--turns makes conversations of arrivals that are drawn; expected --qps")
    if trace is None and (request_class is not None or speed_up != 1):
        raise InputError("--class and --speed-up are of a trace's requests; expected --trace")
    for flag, factor in (("--times-off", times_off), ("--lengths-off", lengths_off), ("--speed-up", speed_up)):
        if not 0 < factor < math.inf:
            raise InputError(f"{flag}: {factor:g}; expected a factor of more than 0")
    for name in policies or ():
        if name not in POLICIES:
            raise InputError(
                f"--policy: unknown policy '{name}'; expected {', '.join(POLICIES)}{nearest(name, POLICIES)}"
            )
    asked, followed = _read_demand(demand), _read_policy(policy)
    with working("simulating"):
        model, full = _model(fleet, asked, fitted, seed, limits=False)
        _check_same(followed, model)
        traffic, classes, source = _traffic(model, trace, request_class, speed_up, qps, requests, turns, seed)
        found = replay(
            model,
            misled(followed, times=times_off, lengths=lengths_off),
            traffic,
            classes,
            names=policies,
            full=full,
            backend=open_backend(solver) if bound else None,
            routers=routers,
            scrape_s=SCRAPE_S if engine_metrics else math.inf,
            seed=seed,
        )
    if plot is not None:
        write_figure(plot, draw_replay(found, source))
    print_replay(found, model, source, plot, as_json=json_output)


@app.command("export")
def export(
    policy: PolicyFile,
    load: Annotated[str, typer.Option(metavar="RATE", help="Load at which to split, such as 12qps.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write here; default: print.")] = None,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="gateway (HTTPRoute), llm-d (to InferencePools), weights (JSON).")
    ] = "gateway",
) -> None:
    """Write the weights of a policy at one load for gateways that split requests at random."""
    from qplan.core.units import parse_rate
    from qplan.report.routing import weights_text, write_text

    if kind not in KINDS:
        raise InputError(f"--kind: unknown '{kind}'; expected {', '.join(KINDS)}{nearest(kind, KINDS)}")
    text = weights_text(_read_policy(policy), parse_rate(load, "--load"), kind)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        typer.echo(f"wrote {out}")


route_live.register(app)


def _read_demand(path: Path) -> Demand:
    from qplan.profiles.demands import read_demand

    return read_demand(path)


def _read_policy(path: Path) -> Policy:
    import json

    from qplan.core.policy import Policy

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"POLICY: no file {path}") from None
    except OSError as error:
        raise InputError(f"POLICY: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"POLICY: cannot read {path} as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"POLICY: {path} holds no JSON object; expected what qplan route solve wrote")
    return Policy.from_json(data, f"POLICY: {path}")


def _model(
    fleet: Path, demand: Demand, fitted: Path | None, seed: int, *, sleep: bool = True, limits: bool = True
) -> tuple[FleetModel, Whole | None]:
    """Return what the models say of the fleet, and the fleet at 16 bits."""
    from qplan.models.simulator.fleetfile import make_fleet, read_fleet
    from qplan.solvers.routing.fleet import at_16_bits, model_fleet
    from qplan.solvers.routing.replaying import Whole

    file = read_fleet(fleet, "FLEET")
    model = model_fleet(file, make_fleet(file, demand.profiles, fitted), demand, sleep=sleep, seed=seed)
    whole = None if limits else at_16_bits(file, demand)
    return model, None if whole is None else Whole(make_fleet(whole[0], demand.profiles, fitted).replicas, whole[1])


def _deadline(text: str, demand: Demand) -> tuple[str, float]:
    from qplan.core.units import parse_duration

    name, equals, time = text.partition("=")
    names = [one.name for one in demand.classes]
    if not equals or name not in names:
        raise InputError(f"--batch: '{text}'; expected CLASS=TIME, a class of {', '.join(names)}{nearest(name, names)}")
    wait_s = parse_duration(time, "--batch")
    if not 0 < wait_s < math.inf:
        raise InputError(f"--batch: '{text}'; expected to wait for more than 0 s")
    return name, wait_s


def _check_same(policy: Policy, model: FleetModel) -> None:
    """Refuse a policy for another fleet or other classes."""
    for what, mine, theirs in (
        ("groups", [(one.name, one.count) for one in policy.groups], [(one.name, one.count) for one in model.groups]),
        ("classes", [one.name for one in policy.classes], list(model.lengths.names)),
    ):
        if mine != theirs:
            raise InputError(f"POLICY: it is for the {what} {mine}, the fleet and the demand have {theirs}")


def _traffic(
    model: FleetModel,
    trace: Path | None,
    request_class: str | None,
    speed_up: float,
    qps: str | None,
    requests: int | None,
    turns: float | None,
    seed: int,
) -> tuple[Traffic, Ints, str]:
    """Return the requests, the class of each, and what they are in words."""
    import numpy as np

    from qplan.core.units import parse_rate
    from qplan.measure.load.traces import read_trace
    from qplan.models.simulator.traffic import Traffic

    if qps is not None:
        rate = parse_rate(qps, "--qps")
        if not rate > 0:
            raise InputError(f"--qps: '{qps}'; expected more than 0")
        source, count = f"{model.demand.name} at {rate:g} req/s", requests or DEFAULT_REQUESTS
        if turns is None:
            traffic = model.lengths.draw(rate, count, seed)
        else:
            longest = min(replica.max_context for replica in model.replicas)
            traffic = model.lengths.converse(rate, count, seed, turns, longest)
            source = f"{source}, conversations of {turns:g} turns"
        return traffic, model.lengths.request_class[traffic.buckets], source
    assert trace is not None
    number = _class_number(model, request_class)
    recorded = read_trace(trace, "--trace")
    whole = Traffic(recorded.schedule(speed_up), recorded.input_tokens, recorded.output_tokens)
    traffic = whole if requests is None else whole.part(0, requests)
    source = f"{trace.name}, {speed_up:g} times as fast" if speed_up != 1 else trace.name
    return traffic, np.full(len(traffic), number), source


def _seen(model: FleetModel, trace: Path, request_class: str | None, seed: int) -> Traffic:
    """Return the requests of the past on which a policy is tried."""
    from qplan.measure.load.traces import read_trace
    from qplan.models.simulator.traffic import Traffic
    from qplan.solvers.routing.trying import as_seen

    number = _class_number(model, request_class)
    recorded = read_trace(trace, "--trace")
    past = Traffic(recorded.schedule(1.0), recorded.input_tokens, recorded.output_tokens)
    return as_seen(model.lengths, past, number, seed)


def _class_number(model: FleetModel, name: str | None) -> int:
    names = model.lengths.names
    if name is not None and name not in names:
        raise InputError(f"--class: unknown '{name}'; expected {', '.join(names)}{nearest(name, names)}")
    return names.index(name) if name is not None else 0


for _command, _examples in ((solve, SOLVE_EXAMPLES), (simulate, SIMULATE_EXAMPLES), (export, EXPORT_EXAMPLES)):
    _command.__doc__ = f"{_command.__doc__}\n{_examples}"
