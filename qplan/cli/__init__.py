"""The command line: one thin module a command, which parses, calls the library and renders."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``qplan``; a :class:`~qplan.core.errors.QplanError`, or Ctrl-C, becomes one line and an exit code."""
    from qplan.cli.commands import COMMANDS, app_of
    from qplan.core.errors import QplanError

    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    named = [name for name in arguments[:1] if name in COMMANDS]
    try:
        app_of(named or COMMANDS)(args=arguments, prog_name="qplan")
    except QplanError as error:
        if debug:
            raise
        sys.stderr.write(f"qplan: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if _interrupted(end):
            sys.stderr.write("qplan: interrupted\n")
        raise


def _interrupted(end: SystemExit) -> bool:
    """Whether Ctrl-C ended a command that does not take it itself; Typer makes an exit of it."""
    return isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt)
