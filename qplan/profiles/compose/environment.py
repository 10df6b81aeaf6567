"""An interpreter that has aiconfigurator: the user's, or that of an environment made for the run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.errors import InputError, StoreError
from qplan.profiles.compose.request import PACKAGE, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWEST_PYTHON = (3, 12)  # aiconfigurator 0.6.0 wants numpy 1.26, which has no wheels for later ones


@contextmanager
def throwaway() -> Iterator[Path]:
    """Make an environment with the package, yield its interpreter, remove the environment.

    Raises
    ------
    InputError
        No Python is found that the package supports.
    StoreError
        The environment cannot be made or the package cannot be installed; the message ends with pip's words.
    """
    base = _supported_python()
    with tempfile.TemporaryDirectory(prefix="qplan-compose-") as folder:
        _run([base, "-m", "venv", folder], "cannot make a virtual environment")
        python = Path(folder, "bin", "python")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, "--only-binary=:all:", f"{PACKAGE}=={VERSION}"], f"cannot install {PACKAGE} {VERSION}")
        yield python


def given(python: Path) -> Path:
    """Return `python` once it is known to have the right version of the package.

    Raises
    ------
    InputError
        It does not run, lacks the package or has another version.
    """
    ask = f"from importlib.metadata import version; print(version({PACKAGE!r}))"
    try:
        # The interpreter is the user's choice, and nothing else of the command is.
        answer = subprocess.run([str(python), "-I", "-c", ask], capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise InputError(f"--python {python}: cannot run it: {error.strerror}; expected a Python interpreter") from None
    if answer.returncode:
        raise InputError(f"--python {python}: it has no {PACKAGE}; expected {PACKAGE}=={VERSION} to be installed there")
    if answer.stdout.strip() != VERSION:
        raise InputError(f"--python {python}: it has {PACKAGE} {answer.stdout.strip()}; expected {VERSION}")
    return python


def last_line(text: str) -> str:
    """Return the last line of a program's words that is not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _supported_python() -> str:
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return sys.executable
    for name in ("python3.12", "python3.11"):
        if found := shutil.which(name):
            return found
    raise InputError(
        f"--python is missing: {PACKAGE} {VERSION} needs Python 3.12 or older, and neither python3.12 nor "
        "python3.11 is on PATH; expected an interpreter that has the package"
    )


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (no shell, our own words)
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror}: {command[0]}") from None
    if done.returncode:
        raise StoreError(f"{what}: {last_line(done.stderr or done.stdout)}")
