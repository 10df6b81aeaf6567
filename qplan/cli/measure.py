"""``qplan measure``: a plan of many configurations, or one thing of a server that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qplan.cli import measure_server
from qplan.cli.examples import example_option
from qplan.cli.interrupts import INTERRUPTED, interrupts
from qplan.cli.profiles import DEFAULT_STORE, Store
from qplan.core.errors import InputError, nearest

EXAMPLES = """
[bold]Examples[/bold]

  qplan measure plan.yaml --dry-run

  qplan measure plan.yaml --store profiles.db

  qplan measure saturation --url http://host:8000 --slo p99:ttft=1s

  qplan measure load --url http://host:8000 --qps 5 --duration 30s --workload chat

  qplan measure report profiles.db -o report.html
"""


class PlanGroup(TyperGroup):
    """A group of commands, or a plan: ``qplan measure plan.yaml`` is ``qplan measure run plan.yaml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` before anything that is no command of the group."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=PlanGroup,
    help=f"Measure a plan of configurations (qplan measure plan.yaml), or one thing of a server that runs.\n{EXAMPLES}",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
measure_server.register(app)


def _example() -> str:
    from qplan.measure.campaign.planfile import EXAMPLE

    return EXAMPLE


@app.command("run")
def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="Plan file.", show_default=False)],
    store: Store = DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid, what is refused and why, and the time it would take.")
    ] = False,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Measure on the GPUs of a Ray cluster; or 'auto'.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed before.")] = False,
    limit: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="Measure what fits into this time, such as 9min; then end."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
    example: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, example_option(_example, "Print a plan with every key.")
    ] = False,
) -> None:
    """Measure a plan: start engines, measure every point, keep it all in the store.

    Stop it with Ctrl-C, or kill it: the same command goes on where it was. With --for it ends by itself in time, for
    machines that are lent by the hour. A point that fails is tried again, then recorded with the engine's last lines,
    and the campaign goes on.

    Example: qplan measure run --example > plan.yaml; qplan measure plan.yaml --dry-run; qplan measure plan.yaml
    """
    from qplan.core.units import parse_duration
    from qplan.measure.campaign.planfile import read_plan
    from qplan.measure.campaign.runner import preview, run_campaign
    from qplan.profiles.store import ProfileStore
    from qplan.report.campaigns import CampaignDisplay, JsonLog, print_grid

    if not plan.is_file() and not plan.suffix:
        commands = ("run", *measure_server.COMMANDS)
        raise InputError(f"no plan file '{plan}', and no command of that name{nearest(str(plan), commands)}")
    limit_s = None if limit is None else parse_duration(limit, "--for")
    read, text = read_plan(plan)
    with ProfileStore(store) as opened:
        if dry_run:
            print_grid(*preview(read, opened), as_json=as_json)
            return
        display: JsonLog | CampaignDisplay = JsonLog() if as_json else CampaignDisplay()
        with interrupts() as stopping, display:
            ended = run_campaign(
                read,
                text,
                opened,
                emit=display.take,
                stopping=stopping,
                ray_address=ray,
                retry_failed=retry_failed,
                limit_s=limit_s,
            )
            interrupted = stopping()
    if ended.stopped:
        sys.stderr.write(f"qplan: stopped with {ended.left} points left; the same command goes on\n")
        raise typer.Exit(INTERRUPTED if interrupted else 0)
    if not ended.done:
        sys.stderr.write(f"qplan: none of {ended.failed + ended.invalid} points could be measured\n")
        raise typer.Exit(4)
    if not as_json:
        again = "; --retry-failed measures the others again" if ended.failed + ended.invalid else ""
        sys.stderr.write(f"qplan: {ended.done} points are in {opened}; see them with qplan measure report{again}\n")
