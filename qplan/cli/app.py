"""The Typer application of all commands."""

from __future__ import annotations

from qplan.cli.commands import COMMANDS, app_of

app = app_of(COMMANDS)
