"""The commands that there are, one module each, and the Typer application of some or all of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from qplan import __version__

#: Modules of this package. One has an ``app`` of several commands, or a function of its own name.
COMMANDS = ("capacity", "export", "fit", "predict", "simulate", "measure", "profiles", "route", "tune", "doctor")


def app_of(commands: Iterable[str]) -> typer.Typer:
    """Make the application of these commands: to read all their signatures takes longer than most of them run."""
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
    app.callback()(_options)
    for name in commands:
        module = import_module(f"qplan.cli.{name}")
        if hasattr(module, "app"):
            for command in module.app.registered_commands:
                command.help = command.help or _flowing(command.callback)
            app.add_typer(module.app, name=name)
        else:
            command = getattr(module, name)
            app.command(name, help=_flowing(command))(command)
    return app


def _flowing(command: object) -> str:
    """Return a command's docstring with paragraphs as lines, which Typer breaks at the terminal's width."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(text if "\n " in f"\n{text}" else text.replace("\n", " ") for text in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qplan {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure, model and plan the serving of quantized large language models."""
