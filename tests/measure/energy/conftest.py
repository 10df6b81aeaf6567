from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

Shim = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def shim(nvml_library: Path) -> Shim:
    """Run ``shim_child.py`` with the real pynvml on top of a compiled stand-in for NVML; returns what it printed."""

    def run(*arguments: str, **settings: object) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment |= {"LD_LIBRARY_PATH": str(nvml_library)} | {name: str(value) for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, HERE / "shim_child.py", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run
