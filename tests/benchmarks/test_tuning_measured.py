"""Studies over real measurements of llama.cpp, all of them made beforehand, so that the exhaustive front is known.

The packs are llamacpp-settings (28 configurations: seven weight formats, threads, batch size) and llamacpp-cpu (sixteen
quantizations). The sampler starts without expectations. Saturation is noisy: one search's logarithm has a standard
deviation of 0.29 here, which decides what is on the front where two settings are alike. So a front is also counted as
found where each of its members is *matched*: by a measured configuration with no worse perplexity and memory, whose
saturation is less than one standard deviation of a configuration's value away. And the study is repeated on each of
the two searches alone: a single search's front holds what noise put there, which nobody can find but by measuring all.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

from qplan.profiles.packs import read_pack
from qplan.solvers.tuning.axes import losses
from qplan.solvers.tuning.hypervolume import hypervolume, nondominated
from qplan.solvers.tuning.objectives import Row
from qplan.solvers.tuning.setup import open_job, sampler_of
from qplan.solvers.tuning.space import enumerate_space
from qplan.solvers.tuning.tables import Table, TableMeasure
from qplan.solvers.tuning.tunefile import parse_tuning
from qplan.solvers.tuning.worker import work

Floats = NDArray[np.float64]
optuna.logging.set_verbosity(optuna.logging.WARNING)

SETTINGS = """\
name: settings
models: [{{name: smollm2-135m, context: 64, max_sequences: 2}}]
space:
  quantization: [F16, Q8_0, Q6_K, Q5_0, Q4_K, Q4_0, Q3_K]
  gpu: cpu
  engine: llamacpp
  settings: {{threads: [1, 2], batch-size: [2, 64]}}
objectives: [saturation, perplexity:english, memory]
workload: isl=8,osl=2
slo: [p90:ttft=250ms]
stop_below: never
seed: {seed}
budget: {budget}
"""
FORMATS = """\
name: formats
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
budget: {budget}
"""


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """Everything measured: losses, (N, M), and what studies replay it with."""

    plan: str
    names: tuple[str, ...]
    points: Floats
    table: Table

    @property
    def front(self) -> NDArray[np.intp]:
        return np.flatnonzero(nondominated(self.points))

    def shares(self, some: list[int]) -> list[float]:
        """Return the share of the front's hypervolume after each measurement."""
        reference = self.points.max(axis=0) + 0.1 * np.ptp(self.points, axis=0)
        whole = hypervolume(self.points, reference)
        return [hypervolume(self.points[some[: n + 1]], reference) / whole for n in range(len(some))]

    def matched(self, member: int, some: list[int], spread: float) -> bool:
        """Whether something measured is as good as a member of the front, saturation up to the spread."""
        mine, others = self.points[member], self.points[some]
        return bool(((others[:, 1:] <= mine[1:]).all(axis=1) & (others[:, 0] <= mine[0] + spread)).any())

    def study(self, seed: int, budget: int) -> list[int]:
        """Return what a study measures, in order."""
        tuning = parse_tuning(self.plan.format(seed=seed, budget=budget), "plan")
        enumerated = enumerate_space(tuning.space, lambda one: self.table.refusal(one, tuning.objectives))
        measure = TableMeasure(self.table)
        job = open_job(
            tuning,
            optuna.storages.InMemoryStorage(),
            enumerated,
            measure,
            self.table.source,
            sampler_of(tuning, enumerated),
        )
        work(job, emit=lambda _: None, stopping=lambda: False)
        return [self.names.index(trial.user_attrs["configuration"]) for trial in job.study.trials if trial.values]


def exhaustive(plan: str, pack: str, repeat: int | None = None) -> Exhaustive:
    """Read a pack; of repeated searches the median, or one alone."""
    tuning = parse_tuning(plan.format(seed=0, budget=1), "plan")
    rows: list[Row] = [
        row
        for row in read_pack(pack).table.to_pylist()
        if repeat is None or row["phase"] != "saturation" or row["repeat"] == repeat
    ]
    table = Table(pack, rows, tuning.conditions)
    found = enumerate_space(tuning.space, lambda one: table.refusal(one, tuning.objectives)).configurations
    points = losses([one.axis for one in tuning.objectives], table.values(found, tuning.objectives))
    return Exhaustive(plan, tuple(map(str, found)), points, table)


def spread_of_searches() -> float:
    """Return the standard deviation of the logarithm of one search, from the pairs of searches of a configuration."""
    first, second = (exhaustive(SETTINGS, "llamacpp-settings", repeat).points[:, 0] for repeat in (0, 1))
    return float(np.sqrt(((first - second) ** 2).mean() / 2))


def first_with(holds: list[bool]) -> int:
    """Return after how many measurements something holds; one more than there are where it never does."""
    return holds.index(True) + 1 if True in holds else len(holds) + 1


@pytest.mark.model_figures
@pytest.mark.parametrize(("repeat", "seeds"), [(None, 20), (0, 6), (1, 6)])
def test_half_of_the_measurements_find_the_exhaustive_front(repeat: int | None, seeds: int) -> None:
    every = exhaustive(SETTINGS, "llamacpp-settings", repeat)
    half = len(every.names) // 2
    spread = spread_of_searches() / (np.sqrt(2) if repeat is None else 1.0)
    members = every.front
    whole, matched, most, nearly_all = [], [], [], []
    for seed in range(seeds):
        order = every.study(seed, budget=half + 4)
        upto = [order[: n + 1] for n in range(len(order))]
        whole.append(first_with([set(members) <= set(some) for some in upto]))
        matched.append(first_with([all(every.matched(m, some, spread) for m in members) for some in upto]))
        most.append(first_with([share >= 0.95 for share in every.shares(order)]))
        nearly_all.append(first_with([share >= 0.99 for share in every.shares(order)]))
    rng = np.random.default_rng(0)
    chance = [
        first_with([set(members) <= set(some[: n + 1]) for n in range(len(some))])
        for some in (list(rng.permutation(len(every.names))) for _ in range(2000))
    ]
    searches = "both searches" if repeat is None else f"search {repeat + 1} alone"
    print(  # noqa: T201
        f"\nllamacpp-settings, {searches}: {len(members)} of {len(every.names)} configurations on the front; the "
        f"logarithm of saturation has a standard deviation of {spread:.2f};\nmeasurements, median (range) of {seeds} "
        f"seeds: whole front {_said(whole)}, by half of all in {sum(n <= half for n in whole)}; matched "
        f"{_said(matched)}, by half in {sum(n <= half for n in matched)}; 95 % of hypervolume {_said(most)}, 99 % "
        f"{_said(nearly_all)}; by chance the whole front takes {median(chance):g}"
    )
    assert median(nearly_all) <= half
    assert median(whole) < median(chance)
    if repeat is None:  # one search alone puts configurations on the front that the other does not: nobody can tell
        assert median(whole) <= half
        assert median(matched) <= half


def _said(counts: list[int]) -> str:
    return f"{median(counts):g} ({min(counts)} to {max(counts)})"


@pytest.mark.model_figures
@pytest.mark.parametrize(
    ("objectives", "least"),
    [("saturation, perplexity:english, memory", 0.95), ("saturation, perplexity:english", 0.97)],
)
def test_half_of_the_measurements_find_most_of_a_front_that_most_are_on(objectives: str, least: float) -> None:
    every = exhaustive(FORMATS.replace("{objectives}", objectives), "llamacpp-cpu")
    half, members = len(every.names) // 2, set(every.front)
    orders = [every.study(seed, budget=half) for seed in range(5)]
    shares = [every.shares(order)[-1] for order in orders]
    some = np.random.default_rng(0).permuted(np.tile(np.arange(len(every.names)), (200, 1)), axis=1)[:, :half]
    chance = mean(every.shares(list(chosen))[-1] for chosen in some)
    print(  # noqa: T201
        f"\nllamacpp-cpu, {objectives}: {len(members)} of {len(every.names)} configurations on the front; {half} "
        f"measurements found {median(shares):.1%} of its hypervolume (least {min(shares):.1%}) and "
        f"{median(len(members & set(order)) for order in orders)} of its members, 5 seeds; chance {chance:.1%}"
    )
    assert median(shares) >= least
    assert median(shares) > chance
