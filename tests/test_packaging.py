"""The mapping from folders to import names: what a forgotten line would break only in the wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAPPED = ("measure", "models", "solvers")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    found = set()
    for folder in ("qplan", *MAPPED):
        prefix = () if folder == "qplan" else ("qplan",)
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            if folder == "qplan" and len(parts) > 1 and parts[1] in MAPPED:
                continue  # the symbolic links
            found.add(".".join((*prefix, *parts)))
    listed = project()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    assert sorted(listed) == sorted(found)


def test_data_files_are_in_listed_packages() -> None:
    kinds = {pattern.removeprefix("*.") for pattern in project()["tool"]["setuptools"]["package-data"]["*"]}  # type: ignore[index]
    data = [path for path in (ROOT / "qplan").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert data
    for path in data:
        assert path.suffix.removeprefix(".") in kinds or path.name in kinds, path
        assert (path.parent / "__init__.py").exists(), path


def test_links_lead_to_the_mapped_folders() -> None:
    for name in MAPPED:
        link = ROOT / "qplan" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_nothing_else_is_installed_at_top_level() -> None:
    tops = {top for top, owners in packages_distributions().items() if "qplan" in owners}
    assert {top for top in tops if not top.startswith("__editable__")} <= {"qplan"}


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("numpy", "scipy", "pandas", "pyarrow", "sqlalchemy", "highspy", "pulp", "rich.table")
    code = f"import sys, qplan.cli.app; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_from_a_pack_imports_nothing_that_it_does_not_need() -> None:
    unneeded = ("pandas", "scipy", "sklearn", "numba", "pyarrow.compute", "sqlalchemy", "pulp", "importlib.metadata")
    code = f"""
import sys
from qplan.core.slo import Slo
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.planner import plan_capacity
assert plan_capacity(CapacityAsk.of(40.0, Slo.parse_all(["ttft=1s"]))).plan.status == "optimal"
print([name for name in {unneeded!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
