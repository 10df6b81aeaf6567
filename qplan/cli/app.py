"""The Typer application: commands are registered here and live in one module each."""

from __future__ import annotations

from typing import Annotated

import typer

from qplan import __version__
from qplan.cli import capacity, doctor, export, fit, measure, predict, profiles, route, simulate, tune

app = typer.Typer(
    name="qplan",
    help="Measure, model and plan the serving of quantized large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Add --debug to any command for a traceback. Exit codes: 2 input, 3 no feasible plan, 4 measurement.",
)
app.command("capacity")(capacity.capacity)
app.command("export")(export.export)
app.command("fit")(fit.fit)
app.command("predict")(predict.predict)
app.command("simulate")(simulate.simulate)
app.add_typer(measure.app, name="measure")
app.add_typer(profiles.app, name="profiles")
app.add_typer(route.app, name="route")
app.add_typer(tune.app, name="tune")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qplan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure, model and plan the serving of quantized large language models."""
