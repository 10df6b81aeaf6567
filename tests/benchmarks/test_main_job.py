"""The speed of the main job: run with ``pytest tests/benchmarks/test_main_job.py -s``; ratios are taken in one run."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

REFERENCE = [sys.executable, "-c", "import numpy, highspy, pyarrow.parquet, typer"]
MAIN_JOB = [sys.executable, "-m", "qplan", "capacity", "--qps", "40", "--slo", "ttft=1s", "--json"]
HELP = [sys.executable, "-m", "qplan", "--help"]


def best_of(command: list[str], runs: int = 7) -> tuple[float, float]:
    """Return the least wall time and the least CPU time of a command, in seconds; its modules are compiled before."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    wall, cpu = [], []
    for _ in range(runs):
        start, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        after = os.times()
        wall.append(time.perf_counter() - start)
        cpu.append(
            after.children_user + after.children_system - before.children_user - before.children_system,
        )
    return min(wall), min(cpu)


def test_main_job_and_help_against_importing_what_they_stand_on(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"imports alone": best_of(REFERENCE), "main job": best_of(MAIN_JOB), "help": best_of(HELP)}
    with capsys.disabled():
        for name, (wall, cpu) in figures.items():
            print(f"\n{name:13} {wall:5.2f} s, {cpu:5.2f} s of CPU", end="")  # noqa: T201
        print()  # noqa: T201
    assert figures["main job"][1] < 5 * figures["imports alone"][1]
