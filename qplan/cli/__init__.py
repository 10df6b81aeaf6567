"""The command line: one thin module a command, which parses, calls the library and renders."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``qplan``; a :class:`~qplan.core.errors.QplanError` becomes one line and its exit code."""
    from qplan.cli.app import app
    from qplan.core.errors import QplanError

    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        app(args=arguments, prog_name="qplan")
    except QplanError as error:
        if debug:
            raise
        sys.stderr.write(f"qplan: {error}\n")
        sys.exit(error.exit_code)
