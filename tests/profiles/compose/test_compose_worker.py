"""The worker sums what the package itself would run: the stand-in always, the real one where there is one."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.profiles.compose.request import SYSTEMS, Candidate, candidates, worker_request
from qplan.profiles.compose.workers import WORKER

CHECK = Path(__file__).with_name("check_worker.py")
REAL = "QPLAN_AICONFIGURATOR_PYTHON"
BUNDLED = {"llama-2-13b": "LLAMA2_13B", "llama-3.1-70b": "LLAMA3.1_70B"}
L40S = SYSTEMS[3]


def chosen(gpu: int) -> tuple[Candidate, ...]:
    """Two models of which the package has its own shapes, at TP2 and TP8, in each quantization of a GPU."""
    return tuple(c for c in candidates(SYSTEMS[gpu]) if c.model.name in BUNDLED and c.tp in (2, 8))


def compared(python: Path, of: tuple[Candidate, ...], folder: Path) -> int:
    request, names = folder / "request.json", folder / "names.json"
    request.write_text(json.dumps(worker_request(of)))
    names.write_text(json.dumps([BUNDLED[c.model.name] for c in of]))
    command = [str(python), "-I", str(CHECK), str(WORKER), str(request), str(names)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_sums_are_those_of_the_standin(standin_python: Path, tmp_path: Path) -> None:
    assert compared(standin_python, chosen(3)[::3], tmp_path) > 1000


@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} does not name an interpreter that has aiconfigurator 0.6.0")
@pytest.mark.parametrize("gpu", range(len(SYSTEMS)))
def test_sums_are_those_of_the_real_package(gpu: int, tmp_path: Path) -> None:
    assert compared(Path(os.environ[REAL]), chosen(gpu)[::3], tmp_path) > 500


def test_says_which_tables_are_missing(standin_python: Path, tmp_path: Path) -> None:
    broken = replace(L40S, name="broken")
    request = tmp_path / "request.json"
    request.write_text(json.dumps(worker_request((replace(candidates(L40S)[0], system=broken),))))
    result = tmp_path / "result.npz"
    command = [str(standin_python), "-I", str(WORKER), str(request), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.strip() == "no trtllm 1.0.0 tables for broken"
    assert not result.exists()
