"""``--example``: print a file to begin with, and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer


def example_option(text: Callable[[], str], help: str) -> Any:
    """Return the option ``--example``, which prints what `text` returns; its import is left to `text`."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(text(), nl=False)
            raise typer.Exit

    return typer.Option("--example", callback=show, is_eager=True, help=help)
