"""The health of an installation: versions, GPUs, engines, energy counters, packs and solvers."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qplan.core.errors import MeasurementError
from qplan.report.output import console, print_json

SCHEMA_VERSION = 1
REQUIRED = ("numpy", "highspy", "pyarrow", "sqlalchemy", "typer", "rich")
OPTIONAL = {
    "pulp": "pulp",
    "psycopg": "postgres",
    "datasets": "datasets",
    "uvloop": "measure",
    "xllamacpp": "llamacpp",
    "matplotlib": "plots",
    "ray": "ray",
}
_QUERY = "name,memory.total,driver_version"


def examine() -> dict[str, Any]:
    """Look at this installation; nothing is changed and nothing but ``nvidia-smi`` is run."""
    from qplan.profiles.packs import installed_packs
    from qplan.solvers.backends import installed_backends

    gpus, note = _gpus()
    return {
        "schema_version": SCHEMA_VERSION,
        "qplan": version("qplan"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in REQUIRED},
        "extras": {extra: _version(name) for name, extra in OPTIONAL.items()},
        "solvers": list(installed_backends()),
        "engines": _engines(),
        "energy": _energy(),
        "gpus": gpus,
        "gpus_note": note,
        "packs": {name: str(path) for name, path in installed_packs().items()},
    }


def print_health(findings: dict[str, Any], *, as_json: bool) -> None:
    """Print what :func:`examine` found."""
    if as_json:
        print_json(findings)
        return
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]qplan[/bold]", f"{findings['qplan']} on Python {findings['python']}, {findings['platform']}")
    table.add_row("[bold]packages[/bold]", ", ".join(f"{name} {found}" for name, found in findings["packages"].items()))
    for extra, found in findings["extras"].items():
        table.add_row(f"[bold]{extra}[/bold]", found or f"not installed: pip install 'qplan\\[{extra}]'")
    table.add_row("[bold]solvers[/bold]", ", ".join(findings["solvers"]))
    table.add_row("[bold]engines[/bold]", ", ".join(f"{name} {found}" for name, found in findings["engines"].items()))
    table.add_row("[bold]energy[/bold]", findings["energy"])
    table.add_row("[bold]GPUs[/bold]", ", ".join(findings["gpus"]) or findings["gpus_note"])
    table.add_row("[bold]packs[/bold]", ", ".join(findings["packs"]) or "none")
    console().print(table)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _engines() -> dict[str, str]:
    """Ask each engine's adapter for the version that is installed."""
    from qplan.measure.engines import engine_names, open_engine

    found = {}
    for name in engine_names():
        if name == "remote":
            continue  # any server, of any version
        try:
            found[name] = open_engine(name).version()
        except MeasurementError:
            found[name] = "not installed"
    return found


def _energy() -> str:
    """Say which energy counter this machine has, or why none."""
    from qplan.measure.energy import open_meter

    with open_meter() as meter:
        return meter.source if meter.source != "none" else meter.between(0.0, 1.0).note or "none"


def _gpus() -> tuple[list[str], str | None]:
    """Ask ``nvidia-smi`` for the GPUs; without one, say why the list is empty."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return [], "none: nvidia-smi is not on the PATH"
    try:
        done = subprocess.run(  # noqa: S603
            [command, f"--query-gpu={_QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi failed: {error}"
    return [line.strip() for line in done.stdout.splitlines() if line.strip()], None
