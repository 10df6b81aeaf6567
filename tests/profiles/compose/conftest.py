"""Environments of their own, in which a stand-in for aiconfigurator is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

STANDIN = Path(__file__).with_name("standin")
MakeEnvironment = Callable[[Path, str | None], Path]


@pytest.fixture(scope="session")
def make_environment() -> MakeEnvironment:
    """Make an environment with numpy and the stand-in under a version, or without it; return its interpreter."""

    def make(folder: Path, version: str | None) -> Path:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        # A folder of links, so that nothing but numpy comes from this interpreter's packages.
        packages = folder / "packages"
        packages.mkdir()
        numpy = Path(np.__file__).parent
        for name in ("numpy", "numpy.libs"):
            if (numpy.parent / name).exists():
                (packages / name).symlink_to(numpy.parent / name)
        (site / "standin.pth").write_text(f"{packages}\n{STANDIN}\n")
        if version is not None:
            info = site / f"aiconfigurator-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: aiconfigurator\nVersion: {version}\n")
        return folder / "bin" / "python"

    return make


@pytest.fixture(scope="session")
def standin_python(make_environment: MakeEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("standin") / "env", "0.6.0")
