"""The speed of the main job: run with ``pytest tests/benchmarks -s``; the numbers are ratios taken in one run."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

REFERENCE = [sys.executable, "-c", "import numpy, scipy.sparse, highspy"]
MAIN_JOB = [sys.executable, "-m", "qplan", "capacity", "--qps", "40", "--slo", "ttft=1s", "--json"]
HELP = [sys.executable, "-m", "qplan", "--help"]


def best_of(command: list[str], runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_main_job_and_help_against_importing_the_solver(capsys: pytest.CaptureFixture[str]) -> None:
    reference, job, manual = best_of(REFERENCE), best_of(MAIN_JOB), best_of(HELP)
    with capsys.disabled():
        print(f"\nimports {reference:.2f} s; main job {job:.2f} s = {job / reference:.1f} x; help {manual:.2f} s")  # noqa: T201
