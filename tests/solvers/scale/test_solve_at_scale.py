from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.solvers import scale
from qplan.solvers.backends import MatrixProgram, Solution, open_backend
from qplan.solvers.backends.contract import feasible_point
from qplan.solvers.scale import minimise, relaxation
from qplan.solvers.scale import solve as scale_solve
from qplan.solvers.scale.relaxation import relax
from qplan.solvers.scale.solve import solve_at_scale
from qplan.solvers.scale.structure import read_structure

RandomFleet = Callable[[int], MatrixProgram]


def exact(program: MatrixProgram) -> Solution:
    return open_backend("highs").solve(program, time_limit_s=60, mip_gap=0.0)


def check(program: MatrixProgram, *, mip_gap: float = 0.0) -> None:
    """Compare with HiGHS on the whole program."""
    truth, answer = exact(program), solve_at_scale(program, time_limit_s=60, mip_gap=mip_gap)
    if truth.status == "infeasible":
        assert answer.status == "infeasible"
        return
    assert truth.objective is not None
    assert answer.values is not None
    assert answer.objective is not None
    assert answer.bound is not None
    assert feasible_point(program, answer.values) is not None
    tolerance = 2e-6 * max(1.0, abs(truth.objective))
    assert answer.objective >= truth.objective - tolerance
    assert answer.bound <= truth.objective + tolerance
    assert answer.objective - answer.bound <= max(mip_gap * answer.objective, 0.0) + tolerance
    if answer.status == "optimal":
        assert answer.objective <= truth.objective + tolerance


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_the_optimum(random_fleet: RandomFleet, seed: int) -> None:
    check(random_fleet(seed))


@pytest.mark.slow
def test_it_finds_the_optimum_of_many(random_fleet: RandomFleet) -> None:
    for seed in range(20, 300):
        check(random_fleet(seed), mip_gap=0.0 if seed % 2 else 0.02)


@pytest.mark.parametrize("seed", range(15))
def test_with_few_columns_at_first_the_bound_is_the_same(
    random_fleet: RandomFleet, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Columns that come only when the duals price them in change neither the bound nor the answer."""
    program = random_fleet(seed)
    structure = read_structure(program)
    at_once = relax(program, structure, np.inf, lift=0.0)
    monkeypatch.setattr(relaxation, "_FEW", 0)
    monkeypatch.setattr(relaxation, "_FIRST", 1)
    monkeypatch.setattr(relaxation, "_MORE", 1)
    generated = relax(program, structure, np.inf, lift=0.0)
    assert (at_once is None) == (generated is None)
    if at_once is not None and generated is not None:
        np.testing.assert_allclose(generated.bound, at_once.bound, rtol=1e-3)
    check(program)


@pytest.mark.parametrize("seed", range(10))
def test_a_relaxation_that_ran_out_of_time_still_bounds(
    random_fleet: RandomFleet, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Its duals are those of some of the columns; the bound holds for all."""
    program = random_fleet(seed)
    truth = exact(program)
    monkeypatch.setattr(relaxation, "_FEW", 0)
    monkeypatch.setattr(relaxation, "_FIRST", 1)
    monkeypatch.setattr(relaxation._Simplex, "price", lambda _: False)
    relaxed = relax(program, read_structure(program), np.inf)
    if truth.objective is not None and relaxed is not None:
        assert relaxed.bound <= truth.objective + 1e-6


def test_reduced_costs_bound_what_a_replica_more_costs(random_fleet: RandomFleet) -> None:
    """With a count at 1 or more, no solution is cheaper than the bound and the count's reduced cost."""
    for seed in range(3):
        program = random_fleet(seed)
        relaxed = relax(program, read_structure(program), np.inf)
        if relaxed is None:
            continue
        for count in np.flatnonzero(program.integer):
            forced = exact(program.with_bounds([count], 1.0, program.upper[count]))
            if forced.objective is not None:
                assert forced.objective >= relaxed.bound + max(relaxed.reduced_cost[count], 0.0) - 1e-5


def test_a_binding_inventory_ties_the_pieces_together() -> None:
    """Two demands that would each take the last cheap GPU; alone, each is told that it may."""
    empty = np.empty(0)
    program = (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns(["a cheap", "a dear", "b cheap", "b dear"])
        .with_columns(["cheap a", "dear a", "cheap b", "dear b"], integer=True, upper=3.0)
        .with_cost(np.arange(8), [0, 0, 0, 0, 1.0, 2.0, 1.0, 3.0])
        .with_rows([0, 0, 1, 1], [0, 1, 2, 3], np.ones(4), np.ones(2), np.ones(2))
        .with_rows(
            np.repeat(np.arange(4), 2), [0, 4, 1, 5, 2, 6, 3, 7], np.tile([0.5, -1.0], 4), [-np.inf] * 4, [0.0] * 4
        )
        .with_row([4, 6], [1.0, 1.0], upper=1.0)
    )
    answer = solve_at_scale(program, time_limit_s=20, mip_gap=0.0)
    assert answer.status == "optimal"
    assert answer.objective == pytest.approx(3.0)
    assert answer.values is not None
    np.testing.assert_array_equal(answer.values[4:], [0, 1, 1, 0])


def test_infeasible_and_unbounded_are_told_apart(random_fleet: RandomFleet) -> None:
    program = random_fleet(1)
    counts = np.flatnonzero(program.integer)
    assert solve_at_scale(program.with_bounds(counts, 0.0, 0.0)).status == "infeasible"
    free = program.with_columns(["free"], cost=-1.0)
    assert solve_at_scale(free).status == "unbounded"


def test_a_program_of_another_kind_is_solved_all_the_same() -> None:
    empty = np.empty(0)
    cover = MatrixProgram(empty, empty, empty, np.empty(0, bool), ()).with_columns(["a", "b"], integer=True)
    cover = cover.with_cost([0, 1], [4.0, 3.0]).with_row([0, 1], [5.0, 3.0], lower=17.0)
    answer = solve_at_scale(cover, mip_gap=0.0)
    assert answer.status == "optimal"
    assert answer.objective == 15.0


def test_without_time_a_start_is_the_least_it_returns(random_fleet: RandomFleet) -> None:
    program = random_fleet(4)
    truth = exact(program)
    assert truth.values is not None
    answer = solve_at_scale(program, time_limit_s=0.0, start=truth.values)
    assert answer.objective == pytest.approx(truth.objective)
    assert answer.objective is not None
    assert answer.bound is None or answer.bound <= answer.objective


def test_a_start_that_breaks_a_row_is_left_aside(random_fleet: RandomFleet) -> None:
    program = random_fleet(4)
    answer = solve_at_scale(program, mip_gap=0.0, start=np.zeros(len(program.cost)))
    assert answer.objective == pytest.approx(exact(program).objective)


def test_the_same_program_gives_the_same_plan(random_fleet: RandomFleet) -> None:
    first, second = (solve_at_scale(random_fleet(7), mip_gap=0.0) for _ in range(2))
    assert first.values is not None
    assert second.values is not None
    np.testing.assert_array_equal(first.values, second.values)


def test_another_backend_searches_too(random_fleet: RandomFleet) -> None:
    program = random_fleet(2)
    assert solve_at_scale(program, backend="pulp:cbc", mip_gap=0.0).objective == pytest.approx(exact(program).objective)


def test_an_unknown_backend_is_named(random_fleet: RandomFleet) -> None:
    with pytest.raises(InputError, match="unknown solver 'hihgs'"):
        solve_at_scale(random_fleet(0), backend="hihgs")


def test_only_large_programs_with_whole_columns_are_solved_at_scale(
    random_fleet: RandomFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, highs, called = random_fleet(2), open_backend("highs"), []

    def recorded(*args: object, **options: object) -> Solution:
        called.append(args)
        return solve_at_scale(program, mip_gap=0.0)

    monkeypatch.setattr(scale_solve, "solve_at_scale", recorded)
    small = minimise(program, highs, time_limit_s=20, mip_gap=0.0)
    monkeypatch.setattr(scale, "_LARGE", 0)
    linear = replace(program, integer=np.zeros_like(program.integer))
    relaxed = minimise(linear, highs, time_limit_s=20, mip_gap=0.0)
    assert not called
    large = minimise(program, highs, time_limit_s=20, mip_gap=0.0)
    assert len(called) == 1
    assert large.objective == pytest.approx(small.objective)
    assert relaxed.objective is not None
    assert small.objective is not None
    assert relaxed.objective <= small.objective
