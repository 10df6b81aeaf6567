"""A study over real measurements: the pack llamacpp-cpu, sixteen quantizations of SmolLM2-135M, measured exhaustively.

The sampler starts without expectations: whatever else is known of these quantizations comes from the same campaign.
What the table says of saturation is noisy (a search took 40 s), so that most configurations are on its front.
"""

from __future__ import annotations

from statistics import mean, median

import numpy as np
import optuna
import pytest

from qplan.solvers.tuning.axes import losses
from qplan.solvers.tuning.hypervolume import hypervolume, nondominated
from qplan.solvers.tuning.setup import enumerate_table, open_job, sampler_of
from qplan.solvers.tuning.tables import Table
from qplan.solvers.tuning.tunefile import parse_tuning
from qplan.solvers.tuning.worker import work

PLAN = """\
name: pack
models: [{{name: smollm2-135m, context: 512, max_sequences: 8}}]
space:
  quantization: [F16, Q8_0, Q6_K, Q5_0, Q4_K, Q4_0, Q3_K, Q2_K]
  kv: [16, KV8-INT]
  gpu: cpu
  engine: llamacpp
objectives: [{objectives}]
workload: isl=16,osl=8
slo: [p90:ttft=1s]
stop_below: never
seed: {seed}
budget: 8
"""
SEEDS = 5


@pytest.mark.model_figures
@pytest.mark.parametrize(
    ("objectives", "least"),
    [("saturation, perplexity:english, memory", 0.95), ("saturation, perplexity:english", 0.97)],
)
def test_half_of_the_measurements_find_most_of_the_front(objectives: str, least: float) -> None:
    plan = parse_tuning(PLAN.format(objectives=objectives, seed=0), "plan")
    enumerated, measure = enumerate_table(plan, "llamacpp-cpu")
    names = [str(one) for one in enumerated.configurations]
    axes = [one.axis for one in plan.objectives]
    values = Table.read("llamacpp-cpu", plan).values(enumerated.configurations, plan.objectives)
    points = losses(axes, values)
    reference = points.max(axis=0) + 0.1 * np.ptp(points, axis=0)
    whole, front = hypervolume(points, reference), {names[i] for i in np.flatnonzero(nondominated(points))}
    shares, found = [], []
    for seed in range(SEEDS):
        tuning = parse_tuning(PLAN.format(objectives=objectives, seed=seed), "plan")
        storage = optuna.storages.InMemoryStorage()
        job = open_job(tuning, storage, enumerated, measure, "llamacpp-cpu", sampler_of(tuning, enumerated))
        work(job, emit=lambda _: None, stopping=lambda: False)
        measured = [trial.user_attrs["configuration"] for trial in job.study.trials if trial.values]
        shares.append(hypervolume(points[[names.index(name) for name in measured]], reference) / whole)
        found.append(len(front.intersection(measured)))
    some = np.random.default_rng(0).permuted(np.tile(np.arange(len(names)), (200, 1)), axis=1)[:, :8]
    chance = mean(hypervolume(points[list(chosen)], reference) / whole for chosen in some)
    print(  # noqa: T201
        f"\n{objectives}: {len(front)} of {len(names)} configurations on the front; 8 measurements found "
        f"{median(shares):.1%} of its hypervolume (least {min(shares):.1%}) and {median(found)} of its members, "
        f"{SEEDS} seeds; chance {chance:.1%}"
    )
    assert median(shares) >= least
    assert median(shares) > chance
