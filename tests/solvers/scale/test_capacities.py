from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qplan.solvers.backends import MatrixProgram, open_backend
from qplan.solvers.scale.capacities import Capacities
from qplan.solvers.scale.cuts import broken_cuts
from qplan.solvers.scale.relaxation import relax
from qplan.solvers.scale.structure import read_structure

RandomFleet = Callable[[int], MatrixProgram]
EMPTY = np.empty(0)


def alike(loads: list[list[float]], prices: list[float]) -> MatrixProgram:
    """Demands on deployments, one price each: shares first, by demand, then counts."""
    buckets, kinds = np.shape(loads)
    shares = np.arange(buckets * kinds)
    counts = len(shares) + np.arange(kinds)
    kind = shares % kinds
    return (
        MatrixProgram(EMPTY, EMPTY, EMPTY, np.empty(0, bool), ())
        .with_columns([""] * len(shares))
        .with_columns([""] * kinds, integer=True, upper=9.0)
        .with_cost(counts, prices)
        .with_rows(shares // kinds, shares, np.ones(len(shares)), np.ones(buckets), np.ones(buckets))
        .with_rows(
            np.concatenate([kind, np.arange(kinds)]),
            np.concatenate([shares, counts]),
            np.concatenate([np.ravel(loads), -np.ones(kinds)]),
            np.full(kinds, -np.inf),
            np.zeros(kinds),
        )
    )


def capacities(program: MatrixProgram) -> Capacities:
    return Capacities.of(program, read_structure(program))


def families(found: Capacities) -> list[int]:
    """Rows with several kinds of replicas."""
    return np.flatnonzero(np.bincount(found.whole_row) > 1).tolist()


def test_rows_of_about_one_price_are_added_up_at_the_least_load() -> None:
    found = capacities(alike([[0.4, 0.3, 0.2]], [2.0, 2.01, 5.0]))
    (family,) = families(found)
    np.testing.assert_allclose(found.load[found.row == family], [0.3])
    np.testing.assert_array_equal(found.whole_column[found.whole_row == family], [3, 4])


def test_prices_far_apart_make_no_family() -> None:
    assert not families(capacities(alike([[0.4, 0.3]], [2.0, 3.0])))


def test_models_without_a_common_demand_make_no_family() -> None:
    one = alike([[0.5]], [2.0])
    apart = one.with_columns(["x"]).with_columns(["n"], integer=True, upper=9.0)
    apart = apart.with_row([2], [1.0], lower=1.0, upper=1.0).with_row([2, 3], [0.5, -1.0], upper=0.0)
    assert not families(capacities(apart))


def test_many_that_are_alike_need_a_whole_replica_between_them() -> None:
    """Each of four deployments serves a quarter of its demand with a quarter of a replica; nothing alone is broken."""
    kinds = 4
    program = alike(np.full((kinds, kinds), 0.3).tolist(), [1.0] * kinds)
    share = np.eye(kinds).ravel()
    point = np.concatenate([share, np.full(kinds, 0.3)])
    cuts = broken_cuts(capacities(program), point)
    together = [np.flatnonzero(cuts.row_of == row) for row in range(len(cuts))]
    assert max(len(np.unique(cuts.indices[entries])) for entries in together) == kinds * kinds + kinds
    relaxed = relax(program, read_structure(program), np.inf)
    assert relaxed is not None
    np.testing.assert_allclose(relaxed.bound, 2.0, atol=1e-6)  # 1.2 replicas' work takes two of them


@pytest.mark.parametrize("seed", range(12))
def test_families_cut_no_fleet_off(random_fleet: RandomFleet, seed: int) -> None:
    """Prices made alike, so that there are families; their relaxation stays below the optimum."""
    program = random_fleet(seed)
    cost = np.where(program.integer, np.round(program.cost), program.cost)
    program = program.with_cost(np.arange(len(cost)), cost)
    best = open_backend("highs").solve(program, time_limit_s=20, mip_gap=0.0)
    relaxed = relax(program, read_structure(program), np.inf, lift=0.0)
    if best.objective is not None and relaxed is not None:
        assert relaxed.bound <= best.objective + 1e-6
        cuts = broken_cuts(capacities(program), relaxed.values)
        assert best.values is not None
        activity = np.bincount(cuts.row_of, weights=cuts.data * best.values[cuts.indices], minlength=len(cuts))
        assert (activity >= cuts.lower - 1e-6).all()
