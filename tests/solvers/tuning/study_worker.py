"""A worker of a study in a process of its own: ``python study_worker.py TUNE.yaml STORAGE LOG [hang]``.

Measuring is made up and takes a moment; with ``hang`` it never ends, so that the worker can be killed in it. Every
begin is a line of LOG.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import optuna

from qplan.solvers.tuning.measuring import Halted, Hooks, Measured
from qplan.solvers.tuning.setup import open_job, sampler_of
from qplan.solvers.tuning.space import Configuration, enumerate_space
from qplan.solvers.tuning.study import storage_at
from qplan.solvers.tuning.tunefile import read_tuning
from qplan.solvers.tuning.worker import work


def main(plan: str, storage: str, log: str, *how: str) -> None:
    def measure(one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        with Path(log).open("a", encoding="utf-8") as lines:
            lines.write(f"{os.getpid()} {one}\n")
        until = time.monotonic() + (600 if how else 0.2)
        while time.monotonic() < until:
            if hooks.stopping():
                raise Halted
            time.sleep(0.02)
        bits = 4 if "W4" in one.target.quantization else 16
        rows = (
            {
                "phase": "serving",
                "status": "ok",
                "output_tokens_per_s": one.gpus * 900.0 / bits,
                "ttft_p90_s": bits / one.gpus,
            },
        )
        return Measured(rows, 0.2)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuning = read_tuning(Path(plan))
    enumerated = enumerate_space(tuning.space, lambda _: None)
    with storage_at(storage) as kept:
        job = open_job(tuning, kept, enumerated, measure, "made up", sampler_of(tuning, enumerated, threshold=0.0))
        work(job, emit=lambda _: None, stopping=lambda: False)


if __name__ == "__main__":
    main(*sys.argv[1:])
