"""Several workers on one study: nothing measured twice, nothing lost, whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from qplan.solvers.tuning.study import CONFIGURATION, storage_at
from qplan.solvers.tuning.turns import RETRY_OF

WORKER = Path(__file__).with_name("study_worker.py")
PLAN = """\
name: shared
space:
  model: llama-2-13b
  quantization: [BF16, W8A16, W4A16]
  gpu: h100
  tp: [1, 2, 4]
  engine: vllm
objectives: [throughput, p90:ttft]
workload: chat
load: 1qps
budget: 9 measurements
stop_below: never
"""


def run_workers(folder: Path, storage: str, workers: int, killed: int) -> tuple[list[str], list[int]]:
    """Run workers, kill some of them with -9 in the middle of a measurement; return the log and the killed's ids."""
    plan, log = folder / "tune.yaml", folder / "log"
    plan.write_text(PLAN)
    log.touch()

    def start(*how: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(WORKER), str(plan), storage, str(log), *how])

    processes = [start("hang") for _ in range(killed)] + [start() for _ in range(workers - killed)]
    doomed = processes[:killed]
    try:
        deadline = time.monotonic() + 120
        while len({line.split()[0] for line in log.read_text().splitlines()} & {str(p.pid) for p in doomed}) < killed:
            assert time.monotonic() < deadline, "the workers to be killed never began to measure"
            time.sleep(0.05)
        for process in doomed:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for process in processes[killed:]:
            assert process.wait(timeout=120) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return log.read_text().splitlines(), [process.pid for process in doomed]


def check_complete(storage: str, log: list[str], killed: list[int]) -> None:
    with storage_at(storage) as kept:
        trials = optuna.load_study(study_name="shared", storage=kept).get_trials(deepcopy=False)
    complete = Counter(t.user_attrs[CONFIGURATION] for t in trials if t.state == TrialState.COMPLETE)
    assert len(complete) == 9
    assert set(complete.values()) == {1}
    by_living = Counter(line.partition(" ")[2] for line in log if int(line.split()[0]) not in killed)
    assert by_living == complete  # whatever was begun by a worker that lived was begun once, and is in the study
    lost = {line.partition(" ")[2] for line in log if int(line.split()[0]) in killed}
    again = {t.user_attrs[CONFIGURATION] for t in trials if RETRY_OF in t.user_attrs}
    assert again == lost
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


@pytest.mark.slow
def test_four_workers_on_postgresql_outlive_the_death_of_two(tmp_path: Path, postgres_url: str) -> None:
    log, killed = run_workers(tmp_path, postgres_url, workers=4, killed=2)
    check_complete(postgres_url, log, killed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study.db", "study.journal"])
def test_workers_share_a_file(tmp_path: Path, name: str) -> None:
    log, killed = run_workers(tmp_path, str(tmp_path / name), workers=2, killed=1)
    check_complete(str(tmp_path / name), log, killed)
