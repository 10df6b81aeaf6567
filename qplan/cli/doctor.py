"""``qplan doctor``: what is installed, which GPU is there, which packs and solvers can be used."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show what this installation has: versions, GPUs, profile packs, solver backends.

    [bold]Example[/bold]

      qplan doctor --json
    """
    from qplan.report.health import examine, print_health

    print_health(examine(), as_json=json_output)
