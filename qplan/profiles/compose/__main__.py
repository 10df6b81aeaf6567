"""``python -m qplan.profiles.compose``: make the pack ``trtllm-composed``."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qplan.core.errors import QplanError
from qplan.profiles.compose import environment, pack, workers
from qplan.profiles.compose.request import PACKAGE, SYSTEMS, VERSION, candidates, worker_request
from qplan.profiles.compose.rows import compose

if TYPE_CHECKING:
    from collections.abc import Sequence


def make(out: Path, python: Path | None, jobs: int, console: Console) -> tuple[Path, Path]:
    """Compose every GPU and write the pack into the folder `out`; return the paths of table and card.

    Parameters
    ----------
    python
        Interpreter that has the package; ``None`` installs it into an environment that is removed afterwards.
    jobs
        Processes at a time.

    Raises
    ------
    InputError
        The interpreter does not serve.
    StoreError
        The package cannot be installed, a process failed, or `out` cannot be written to.
    """
    of = [candidates(system) for system in SYSTEMS]
    with pack.staging(out) as stage:
        if python is None:
            console.print(f"Installing {PACKAGE} {VERSION} into an environment of its own")
        with nullcontext(environment.given(python)) if python else environment.throwaway() as interpreter:
            shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*shown, console=console) as progress:
                bars = [progress.add_task(s.gpu, total=len(c)) for s, c in zip(SYSTEMS, of, strict=True)]
                arrays = workers.run(
                    interpreter,
                    [worker_request(c) for c in of],
                    stage,
                    jobs,
                    lambda index, done: progress.advance(bars[index], done),
                )
        parts = [compose(c, a) for c, a in zip(of, arrays, strict=True)]
        return pack.write(parts, datetime.now(UTC).date().isoformat(), stage, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m qplan.profiles.compose", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the pack (default: here)")
    parser.add_argument(
        "--python",
        type=Path,
        metavar="PATH",
        help=f"interpreter that has {PACKAGE} {VERSION} (default: a throwaway environment)",
    )
    parser.add_argument("--jobs", type=_jobs, default=2, metavar="N", help="processes at a time (default: 2)")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    try:
        table, card = make(options.out, options.python, options.jobs, console)
    except QplanError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was written")
        return 130
    console.print(f"Wrote {table} ({table.stat().st_size / 1e6:.2f} MB) and {card}", markup=False, soft_wrap=True)
    return 0


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible; expected a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
