"""Power and energy against ML.ENERGY's measured serving runs; ``pytest tests/benchmarks/test_power.py -s``.

Everything is predicted by a fit that never saw the row's model, or its load. Throughput and TPOT are the measured
ones, so what is judged is power alone: the error of J/request is that of watts. The runs are at 16 bits and mostly at
low utilisation; what quantization saves is not among them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qplan.core import Workload
from qplan.models.power.energy import energy
from qplan.models.power.fit import fit_curve, held_out_range, leave_group_out
from qplan.models.power.measured import Points, Run, points_of, read_runs
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.sharing import SharingModel
from qplan.models.steptimes import Bools, Floats
from qplan.profiles.packs import read_pack

pytestmark = pytest.mark.model_figures

RUNS = Path(__file__).parents[2] / "../shared/data/ml-energy-v2/flat_llm.csv"
GPUS = ("A100-SXM4-40GB", "H100-SXM5-80GB")

Fit = Callable[[list[Run], list[Run]], Floats]


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Run]]:
    if not RUNS.exists():
        pytest.skip("needs ../shared/data/ml-energy-v2 beside the checkout")
    every = read_runs(RUNS)
    return {gpu: [run for run in every if run.deployment.gpu.name == gpu] for gpu in GPUS}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def physics(train: list[Run], test: list[Run]) -> Floats:
    gpu = train[0].deployment.gpu
    assert gpu.idle_w is not None
    assert gpu.tdp_w is not None
    points = points_of(test)
    curve = fit_curve([points_of(train)], gpu.idle_w / gpu.tdp_w)
    return curve.at(points.memory_share, points.compute_share) * gpu.tdp_w


def constant(train: list[Run], test: list[Run]) -> Floats:
    return np.full(len(test), np.median([run.power_w for run in train]))


def extra_trees(train: list[Run], test: list[Run]) -> Floats:
    from sklearn.ensemble import ExtraTreesRegressor

    def features(some: list[Run]) -> Floats:
        return np.log(
            [
                (
                    run.deployment.model.parameters,
                    run.deployment.weight_bytes / run.deployment.tp,
                    run.deployment.kv_bytes_per_token,
                    run.deployment.tp,
                    run.batch,
                    run.tpot_s,
                    run.tokens_per_s,
                    run.output_tokens,
                )
                for run in some
            ]
        )

    trees = ExtraTreesRegressor(200, random_state=0, n_jobs=1)
    trees.fit(features(train), np.log([run.power_w for run in train]))
    return np.asarray(np.exp(trees.predict(features(test))))


def left_out(runs: list[Run], fit: Fit, fold: list[str]) -> Floats:
    """Return measured over predicted power of each run by a fit without the runs of its fold."""
    folds = np.array(fold)
    ratio = np.full(len(runs), np.nan)
    for one in dict.fromkeys(fold):
        out = folds == one
        predicted = fit(_pick(runs, ~out), _pick(runs, out))
        ratio[out] = np.array([run.power_w for run in _pick(runs, out)]) / predicted
    return ratio


def mape(ratio: Floats) -> float:
    return float(np.abs(1 / ratio - 1).mean())


def test_leave_model_out(runs: dict[str, list[Run]]) -> None:
    say("\npower (and J/request at measured throughput), models left out: mean absolute percentage error")
    for gpu, some in runs.items():
        models = [run.deployment.model.name for run in some]
        error = {fit.__name__: mape(left_out(some, fit, models)) for fit in (physics, extra_trees, constant)}
        say(
            f"  {gpu:16} {len(some)} runs, {len(set(models))} models: "
            + "  ".join(f"{name} {value:.1%}" for name, value in error.items())
        )
        assert error["physics"] < error["extra_trees"]
        assert error["physics"] < (0.06 if "H100" in gpu else 0.09)


def test_leave_largest_load_out(runs: dict[str, list[Run]]) -> None:
    say("\npower at the largest load of each configuration, from the smaller ones")
    for gpu, some in runs.items():
        largest: dict[str, float] = {}
        for run in some:
            largest[_configuration(run)] = max(run.batch, largest.get(_configuration(run), 0.0))
        top = np.array([run.batch == largest[_configuration(run)] for run in some])
        error = {}
        for fit in (physics, extra_trees):
            predicted = fit(_pick(some, ~top), _pick(some, top))
            error[fit.__name__] = mape(np.array([run.power_w for run in _pick(some, top)]) / predicted)
        say(f"  {gpu:16} " + "  ".join(f"{name} {value:.1%}" for name, value in error.items()))
        assert error["physics"] < 0.12


def test_the_interval_covers_models_that_neither_fit_nor_interval_saw(runs: dict[str, list[Run]]) -> None:
    say("\nshare of runs of left-out models inside the 90 % range of the others' left-out errors")
    for gpu, some in runs.items():
        points, least = points_of(some), 0.1
        ratio = leave_group_out(points, (), least)
        groups = np.array(points.groups)
        inside = np.zeros(len(groups), dtype=bool)
        for group in dict.fromkeys(points.groups):
            out = groups == group
            others = _rows(points, ~out)
            expected = held_out_range(leave_group_out(others, (), least), others.groups)
            inside[out] = (ratio[out] >= expected.lower) & (ratio[out] <= expected.upper)
        say(f"  {gpu:16} {inside.mean():.1%}")
        assert inside.mean() >= 0.85


def test_a100_against_h100_at_batch_64(runs: dict[str, list[Run]]) -> None:
    say("\nJ/request of Llama-3.1-8B at batch 64, the model left out")
    predicted = {}
    for gpu, some in runs.items():
        own = [run for run in some if "3.1-8B" in run.deployment.model.name and 60 < run.batch < 70]
        (run,) = own
        others = [one for one in some if "3.1-8B" not in one.deployment.model.name]
        predicted[gpu] = float(run.joules_per_request / (run.power_w / physics(others, own)[0]))
        say(f"  {gpu:16} measured {run.joules_per_request:.1f}  predicted {predicted[gpu]:.1f}")
        assert predicted[gpu] == pytest.approx(run.joules_per_request, rel=0.1)


def test_energy_of_the_whole_pack() -> None:
    found = profiled(read_pack("trtllm-composed", columns=COLUMNS).table, "the pack")
    assert found is not None
    chat, rates = Workload.named("chat"), np.ones(len(found.deployments))
    assert chat is not None
    loaded = SharingModel.of(found.deployments, found.steps).at(chat, rates)
    start = time.perf_counter()
    seen = energy(found.deployments, found.steps, chat, rates, loaded)
    elapsed = time.perf_counter() - start
    known = np.isfinite(seen.power_w)
    width = (seen.upper_w - seen.lower_w)[known] / seen.power_w[known]
    say(
        f"\n{len(rates)} deployments at 1 request/s in {elapsed:.2f} s: {known.sum()} below saturation, "
        f"{seen.extrapolates[known].mean():.0%} extrapolate, median width of the range {np.median(width):.0%} of power"
    )
    for gpu in sorted({str(one.gpu) for one in found.deployments}):
        some = known & np.array([str(one.gpu) == gpu for one in found.deployments])
        say(f"  {gpu:16} median width {np.median(((seen.upper_w - seen.lower_w) / seen.power_w)[some]):.0%}")
    assert (seen.power_w[known] > seen.idle_w[known]).all()


def _configuration(run: Run) -> str:
    return f"{run.deployment.model} {run.task} {run.deployment.tp}"


def _pick(runs: list[Run], chosen: Bools) -> list[Run]:
    return [run for run, keep in zip(runs, chosen, strict=True) if keep]


def _rows(points: Points, chosen: Bools) -> Points:
    groups = tuple(group for group, keep in zip(points.groups, chosen, strict=True) if keep)
    return Points(points.memory_share[chosen], points.compute_share[chosen], points.power[chosen], groups)
