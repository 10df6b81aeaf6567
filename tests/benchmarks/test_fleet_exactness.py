"""Fleets by period against a PuLP model of them, and how far large ones are proven. By name: `pytest -s`.

300 small random instances in which constraints of every kind occur, each solved as it is and by the way of large
problems (prices, periods by themselves, a search over few options); the reference is solved to optimality. Then a day
of 24 hours and 500 requests/s at the peak over 3,072 options in eight pools, synthetic and without a wish to be easy.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qplan.solvers import scale as at_scale
from qplan.solvers.fleet import solve
from qplan.solvers.fleet.problem import FleetProblem
from qplan.solvers.fleet.prune import undominated
from qplan.solvers.fleet.solve import solve_fleet

REFERENCE = Path(__file__).parents[1] / "solvers" / "fleet" / "fleet_reference.py"


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("fleet_reference_of_benchmark", REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("way", ["whole", "narrowed"])
def test_300_random_fleets(reference: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "narrowed":
        monkeypatch.setattr(solve, "_SMALL", -1)
        monkeypatch.setattr(at_scale, "_LARGE", -1)
        monkeypatch.setattr(solve, "_FEW", 1)
    kinds: Counter[str] = Counter()
    worst, seconds = 0.0, 0.0
    for seed in range(1000, 1300):
        problem = reference.make_fleet(seed)
        begun = time.perf_counter()
        result = solve_fleet(problem, mip_gap=0.0)
        seconds += time.perf_counter() - begun
        best = reference.reference(problem)
        kinds[result.status] += 1
        if best is None:
            assert result.status == "infeasible", seed
            continue
        assert result.status == "optimal", seed
        worst = max(worst, abs((result.objective or 0.0) - best[0]) / max(1.0, abs(best[0])))
        assert worst <= 1e-5, seed
        reference.check_fleet(problem, result)
    print(f"\n{way}: {dict(kinds)}, worst difference {worst:.1e}, {seconds:.0f} s")  # noqa: T201
    assert kinds["optimal"] >= 150


def test_a_day_at_500_requests_per_second() -> None:
    problem = day(0)
    kept = undominated(problem)
    result = solve_fleet(problem, time_limit_s=30.0)
    assert result.objective is not None
    assert result.gap is not None
    print(  # noqa: T201
        f"\n{problem.capacity_qps.shape[1]} options, {len(kept)} of use: "
        f"${result.objective:.2f}, gap {result.gap:.2%}, {result.seconds:.1f} s"
    )
    assert result.bound is not None
    assert 0 < result.bound <= result.objective


def test_that_day_with_a_spare_replica() -> None:
    problem = replace(day(0), spare=1)
    result = solve_fleet(problem, time_limit_s=30.0)
    assert result.objective is not None
    assert result.bound is not None
    assert result.gap is not None
    print(f"\nwith a spare: ${result.objective:.2f}, gap {result.gap:.2%}, {result.seconds:.1f} s")  # noqa: T201
    assert result.bound <= result.objective < 1.3 * result.bound


def day(seed: int) -> FleetProblem:
    """24 buckets, 24 hours; four GPU types, on demand and spot; 3 models, 8 quantizations, 4 TP, 4 engine versions."""
    rng = np.random.default_rng(seed)
    buckets, hours = 24, 24
    price, speed, idle = np.array([[1.0, 1.9, 2.7, 3.6], [0.45, 1.0, 2.3, 2.9], [60.0, 80.0, 110.0, 120.0]])
    model, gpu, tp, weights, _ = (
        axis.ravel() for axis in np.meshgrid(range(3), range(4), [1, 2, 4, 8], range(8), range(4), indexing="ij")
    )
    options = len(tp)
    tokens_in = np.exp(rng.uniform(np.log(64), np.log(4096), (buckets, 1)))
    tokens_out = np.exp(rng.uniform(np.log(16), np.log(800), (buckets, 1)))
    prefill = np.where(weights % 2, rng.uniform(1.0, 2.1, options), rng.uniform(0.85, 1.0, options))
    decode = np.where(weights == 0, 1.0, rng.uniform(1.2, 3.2, options))
    busy_s = tokens_in / (9000 * prefill) + tokens_out / (900 * decode)
    scale = speed[gpu] * np.array([1.0, 0.55, 0.95])[model] * tp ** rng.uniform(0.75, 0.99, options)
    capacity = scale / busy_s * rng.uniform(0.95, 1.05, (buckets, options))
    joules = busy_s * rng.uniform(150.0, 400.0, options) * np.sqrt(speed[gpu])
    spot = price * 0.5 * rng.uniform(0.8, 1.3, 4)
    shape = 0.55 + 0.45 * np.sin((np.arange(hours) - 8) / 24 * 2 * np.pi) + rng.uniform(-0.03, 0.03, hours)
    mix = rng.dirichlet(np.full(buckets, 3.0))[:, None] * rng.uniform(0.85, 1.15, (buckets, hours))
    names = ["l40s", "a100", "h100", "h200"]
    return FleetProblem(
        classes=("chat", "code"),
        options=tuple(f"option {d}" for d in range(2 * options)),
        pools=(*names, *(f"{name} spot" for name in names)),
        bucket_class=np.arange(buckets) % 2,
        hours=np.ones(hours),
        rate_qps=500.0 * mix / mix.sum(0) * shape / shape.max(),
        capacity_qps=np.hstack([capacity, 0.93 * capacity]),
        pool=np.r_[gpu, gpu + 4],
        gpus=np.r_[tp, tp],
        gpu_price=np.r_[price, spot][:, None] * np.ones((1, hours)),
        committed=np.zeros(8, bool),
        inventory=np.r_[np.full(4, np.inf), np.full(4, 40.0)],
        node_gpus=np.ones(8, int),
        idle_w=np.r_[tp * idle[gpu], tp * idle[gpu]],
        dynamic_j=np.hstack([joules, joules]),
        energy_price=np.full(hours, 0.1),
        carbon=np.full(hours, 300.0),
        power_cap_w=np.inf,
        start_s=np.full(2 * options, 120.0),
        start_cost=np.zeros(2 * options),
        quality=np.ones((buckets, 2 * options)),
        mean_quality=np.zeros(2),
    )
