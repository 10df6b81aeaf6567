"""A study on a local Ray cluster, in a process of its own, which ends the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLAN = """\
name: on ray
space: {model: llama-2-13b, quantization: [BF16, W4A16], gpu: h100, tp: [1, 2], engine: vllm}
objectives: [throughput, p90:ttft]
workload: chat
load: 1qps
budget: 4 measurements
stop_below: never
"""

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

import optuna
import ray

from qplan.solvers.tuning.events import Began, Died, Ended
from qplan.solvers.tuning.measuring import Measured
from qplan.solvers.tuning.ray import Assignment, work_on_ray
from qplan.solvers.tuning.setup import open_study, sampler_of
from qplan.solvers.tuning.space import enumerate_space
from qplan.solvers.tuning.study import everywhere, storage_at
from qplan.solvers.tuning.tunefile import read_tuning

folder = Path(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Dying:
    # Made up; the first that begins is killed in the middle of it.

    def __init__(self, folder):
        self.mark = f"{folder}/died"

    def __call__(self, one, known, hooks):
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        bits = 4 if "W4" in one.target.quantization else 16
        rate, wait = one.gpus * 900.0 / bits, bits / one.gpus
        return Measured(({"phase": "serving", "status": "ok", "output_tokens_per_s": rate, "ttft_p90_s": wait},), 0.1)


tuning = read_tuning(folder / "tune.yaml")
enumerated = enumerate_space(tuning.space, lambda _: None)
events = []
with storage_at(str(folder / "tuning.db")) as storage:
    sampler = sampler_of(tuning, enumerated, threshold=0.0)
    study = open_study(tuning, storage, enumerated, "made up", sampler)
    given = Assignment(tuning, everywhere(str(folder / "tuning.db")), "made up", enumerated, sampler, Dying(folder))
    stopped = work_on_ray("auto", 2, given, emit=events.append, keep=lambda _: None, stopping=lambda: False).reason
    measured = [t.user_attrs["configuration"] for t in study.trials if t.values]
print(json.dumps({
    "stopped": stopped,
    "measured": measured,
    "again": [event.configuration for event in events if isinstance(event, Began) and event.again],
    "died": sum(isinstance(event, Died) for event in events),
    "ended": [event.how for event in events if isinstance(event, Ended)],
}))
ray.shutdown()
"""


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_measured_twice(
    tmp_path: Path, on_ray: Callable[[str], dict[str, Any]]
) -> None:
    (tmp_path / "tune.yaml").write_text(PLAN)
    found = on_ray(SCRIPT)
    assert found["stopped"] == "the budget of 4 measurements is spent"
    assert Counter(found["measured"]) == Counter(set(found["measured"]))
    assert len(found["measured"]) == 4
    assert found["died"] == 1
    assert len(found["again"]) == 1
    assert found["again"][0] in found["measured"]
    assert found["ended"] == ["measured"] * 4
