from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from qplan.solvers.capacity.solve import Run
from qplan.solvers.fleet import search, solve
from qplan.solvers.fleet.columns import FleetProgram
from qplan.solvers.fleet.periods import by_period, worth_of_staying
from qplan.solvers.fleet.problem import FleetProblem
from qplan.solvers.fleet.prune import undominated
from qplan.solvers.fleet.relax import cheapest_pattern, relax
from qplan.solvers.fleet.solve import solve_fleet

SEEDS = range(16)


def solved(program: FleetProgram, run: Run) -> Any:
    answer = search.minimise(program, run)
    return answer.program, answer.solution


def feasible(reference: Any) -> list[tuple[FleetProblem, float]]:
    found = []
    for seed in SEEDS:
        problem = replace(reference.make_fleet(seed), then=())
        result = solve_fleet(problem, mip_gap=0.0)
        if result.objective:
            found.append((problem, result.objective))
    return found


@pytest.mark.slow
def test_the_bounds_hold_and_every_option_in_use_costs_its_excess(reference: Any) -> None:
    cases = feasible(reference)
    assert len(cases) >= 8
    tighter = 0
    for problem, least in cases:
        kept = undominated(problem)
        prices = relax(problem, kept, Run.start("highs", 60.0))
        assert prices is not None
        assert prices.bound <= least * (1 + 1e-6)
        assert (prices.excess[kept] >= -1e-6 * max(prices.bound, 1.0)).all()
        staged = by_period(problem, kept, prices, Run.start("highs", 60.0), solved)
        assert staged.bound <= least * (1 + 1e-6)
        tighter += staged.bound > prices.bound * (1 + 1e-3)
        for d in kept:
            forced = replace(
                problem, capacity_qps=np.where(np.arange(len(problem.options)) == d, 0, problem.capacity_qps)
            )
            without = solve_fleet(forced, mip_gap=0.0).objective
            if without is None or without > least * (1 + 1e-6):  # every best fleet uses the option
                assert least >= prices.bound + prices.excess[d] - 1e-5 * max(least, 1.0)
    assert tighter >= len(cases) // 2  # whole replicas cost more than fractions


def test_the_relaxation_is_the_one_of_the_whole_program(reference: Any) -> None:
    """The prices prove what the linear program over all options gives, upper bounds of columns apart."""
    for seed in range(40):
        problem = replace(reference.make_fleet(seed), spare=0, then=())
        kept = undominated(problem)
        if not len(kept):
            continue
        program = search.weighing(problem, kept)
        run = Run.start("highs", 60.0)
        loose = replace(
            program.matrix,
            integer=np.zeros_like(program.matrix.integer),
            upper=np.full(len(program.matrix.cost), np.inf),
        )
        answer = run.backend.solve(loose, time_limit_s=60.0, mip_gap=0.0)
        prices = relax(problem, kept, run)
        if answer.objective is not None:
            assert prices is not None
            assert prices.bound == pytest.approx(answer.objective, rel=1e-5, abs=1e-6), seed


@pytest.mark.parametrize("cyclic", [True, False])
def test_the_cheapest_pattern_is_the_least_of_all_patterns(cyclic: bool) -> None:
    rng = np.random.default_rng(0)
    net, start = rng.normal(size=(50, 5)), rng.uniform(0, 1, (50, 5))
    found = cheapest_pattern(net, start, cyclic=cyclic)
    least = np.full(50, np.inf)
    for pattern in product([0, 1], repeat=5):
        on = np.array(pattern)
        before = np.roll(on, 1) if cyclic else np.r_[0, on[:-1]]
        if on.any():
            least = np.minimum(least, net @ on + start @ (on > before))
    np.testing.assert_allclose(found, least)


@pytest.mark.parametrize("cyclic", [True, False])
def test_staying_up_is_worth_what_makes_no_period_pay(cyclic: bool) -> None:
    """Where no pattern pays, neither does any period by itself at these prices; else they are prices all the same."""
    rng = np.random.default_rng(1)
    net, start = rng.normal(0.3, 0.5, (200, 6)), rng.uniform(0, 1, (200, 6))
    staying = worth_of_staying(net, start, cyclic=cyclic)
    assert ((staying >= 0) & (staying <= start)).all()
    after = np.roll(staying, -1, axis=1)
    if not cyclic:
        after[:, -1] = 0.0
    useless = cheapest_pattern(net, start, cyclic=cyclic) >= 0
    assert 20 <= useless.sum() <= 180
    assert ((net + staying - after)[useless] >= -1e-12).all()


def test_pruning_loses_nothing(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With copies of every option that are a little worse in one figure."""
    problems, results = [], []
    for seed in (1, 4, 6, 8, 9, 11):
        problem = doubled(reference.make_fleet(seed))
        problems.append(problem)
        results.append(solve_fleet(problem, mip_gap=0.0).objective)
        assert 2 * len(undominated(problem)) <= len(problem.options)
    monkeypatch.setattr(solve, "undominated", lambda problem: np.flatnonzero(problem.eligible.any(0)))
    for problem, objective in zip(problems, results, strict=True):
        everything = solve_fleet(problem, mip_gap=0.0).objective
        assert everything == (None if objective is None else pytest.approx(objective, rel=1e-6, abs=1e-6))


def doubled(problem: FleetProblem) -> FleetProblem:
    options = len(problem.options)
    kind = np.arange(options) % 3
    return replace(
        problem,
        options=(*problem.options, *(f"{name}, worse" for name in problem.options)),
        pool=np.tile(problem.pool, 2),
        gpus=np.tile(problem.gpus, 2),
        capacity_qps=np.hstack([problem.capacity_qps, problem.capacity_qps * np.where(kind == 0, 0.95, 1.0)]),
        idle_w=np.r_[problem.idle_w, problem.idle_w * np.where(kind == 1, 1.05, 1.0)],
        dynamic_j=np.tile(problem.dynamic_j, 2),
        start_s=np.tile(problem.start_s, 2),
        start_cost=np.r_[problem.start_cost, problem.start_cost + (kind == 2)],
        quality=np.tile(problem.quality, 2),
        then=(),
        spare=0,
    )
