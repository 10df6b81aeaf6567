"""``python -m qplan.profiles.compose`` as a user runs it, on the stand-in for the package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qplan.core.errors import StoreError
from qplan.profiles.compose import workers
from qplan.profiles.compose.request import SYSTEMS, candidates, worker_request
from qplan.profiles.schema import validate

COMMAND = [sys.executable, "-m", "qplan.profiles.compose"]
MakeEnvironment = Callable[[Path, str | None], Path]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.slow
def test_makes_table_and_card(standin_python: Path, tmp_path: Path) -> None:
    done = run("--out", tmp_path, "--python", standin_python)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trtllm-composed.json", "trtllm-composed.parquet"]
    table = pq.read_table(tmp_path / "trtllm-composed.parquet")
    validate(table, "pack")
    card = json.loads((tmp_path / "trtllm-composed.json").read_text())
    assert card["rows"] == table.num_rows == sum(gpu["rows"] for gpu in card["gpus"].values())
    assert set(card["gpus"]) == {system.gpu for system in SYSTEMS} == set(table["gpu"].unique().to_pylist())
    assert card["oom_deployments"] == table["status"].to_pylist().count("oom")


def test_refuses_another_version(make_environment: MakeEnvironment, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", "0.7.0")
    done = run("--out", tmp_path / "out", "--python", python)
    assert done.returncode == 2
    assert only_line(done) == f"error: --python {python}: it has aiconfigurator 0.7.0; expected 0.6.0"
    assert list((tmp_path / "out").iterdir()) == []


def test_refuses_an_interpreter_without_the_package(make_environment: MakeEnvironment, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", None)
    done = run("--out", tmp_path / "out", "--python", python)
    assert done.returncode == 2
    assert only_line(done).endswith("it has no aiconfigurator; expected aiconfigurator==0.6.0 to be installed there")


def test_refuses_what_is_no_interpreter(tmp_path: Path) -> None:
    done = run("--out", tmp_path, "--python", tmp_path / "none")
    assert done.returncode == 2
    assert "No such file or directory; expected a Python interpreter" in only_line(done)


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_refuses_impossible_jobs(jobs: str, tmp_path: Path) -> None:
    done = run("--out", tmp_path / "out", f"--jobs={jobs}")
    assert done.returncode == 2
    assert done.stderr.endswith(f"argument --jobs: {jobs} is not possible; expected a whole number of 1 or more\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="needs a Python that the package supports")
def test_says_why_the_package_cannot_be_installed(tmp_path: Path) -> None:
    done = run("--out", tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 2
    assert "error: cannot install aiconfigurator 0.6.0: " in done.stderr
    assert "No matching distribution found for aiconfigurator==0.6.0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(standin_python: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--out", str(tmp_path), "--python", str(standin_python)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the signal, and hand that on to what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(tmp_path.glob(".*/0.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("Interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_worker_says_why_and_stops_the_others(standin_python: Path, tmp_path: Path) -> None:
    broken = replace(SYSTEMS[0], name="broken")
    requests = [
        worker_request(candidates(SYSTEMS[1])),
        worker_request(tuple(replace(c, system=broken) for c in candidates(SYSTEMS[0])[:1])),
    ]
    with pytest.raises(StoreError, match=r"^composing broken failed: no trtllm 1.0.0 tables for broken$"):
        workers.run(standin_python, requests, tmp_path, jobs=2)
    assert not list(tmp_path.glob("*.npz"))


def test_progress_counts_every_deployment_and_results_keep_their_order(standin_python: Path, tmp_path: Path) -> None:
    of = [candidates(system)[:count] for system, count in zip(SYSTEMS, (1, 3, 2, 1), strict=True)]
    done = [0] * len(of)

    def progress(index: int, more: int) -> None:
        done[index] += more

    arrays = workers.run(standin_python, [worker_request(c) for c in of], tmp_path, 2, progress)
    assert done == [1, 3, 2, 1] == [len(a["decode_s"]) for a in arrays]
    assert [float(a["capacity_bytes"]) for a in arrays] == [85899345920.0] * 3 + [48305799168.0]
