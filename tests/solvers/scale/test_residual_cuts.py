from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qplan.solvers.backends import MatrixProgram, open_backend
from qplan.solvers.scale.capacities import Capacities
from qplan.solvers.scale.cuts import Cuts, broken_cuts
from qplan.solvers.scale.relaxation import relax
from qplan.solvers.scale.structure import read_structure


def one_deployment(loads: list[float], multiples: list[float]) -> MatrixProgram:
    """Shares of some demands on one deployment, in replicas that count for several; the rest is turned away."""
    n, empty = len(loads), np.empty(0)
    columns = np.arange(2 * n + len(multiples))
    return (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns([""] * 2 * n)
        .with_columns([""] * len(multiples), integer=True, upper=20.0)
        .with_cost(columns, np.concatenate([np.zeros(n), np.full(n, 0.8), multiples]))
        .with_rows(np.tile(np.arange(n), 2), columns[: 2 * n], np.ones(2 * n), np.ones(n), np.ones(n))
        .with_row(
            np.concatenate([columns[:n], columns[2 * n :]]), np.concatenate([loads, -np.array(multiples)]), upper=0.0
        )
    )


def activity(cuts: Cuts, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.bincount(cuts.row_of, weights=cuts.data * values[cuts.indices], minlength=len(cuts)), float)


def capacities_of(loads: list[float], multiples: list[float]) -> Capacities:
    program = one_deployment(loads, multiples)
    return Capacities.of(program, read_structure(program))


def test_one_small_load_needs_a_whole_replica() -> None:
    capacities = capacities_of([0.25], [1.0])
    cuts = broken_cuts(capacities, np.array([1.0, 0.0, 0.25]))
    assert len(cuts) == 1
    # share <= count, times the load
    np.testing.assert_allclose(cuts.data[np.argsort(cuts.indices)], [-0.25, 0.25])
    np.testing.assert_allclose(cuts.lower, 0.0, atol=1e-12)


def test_whole_replicas_break_nothing() -> None:
    capacities = capacities_of([0.7, 0.9, 1.3], [1.0])
    assert not len(broken_cuts(capacities, np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 3.0])))


@pytest.mark.parametrize("seed", range(20))
def test_cuts_spare_every_whole_point(seed: int) -> None:
    """Cut fractional points off at random, and check that no point with whole replicas goes with them."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    loads = rng.uniform(0.05, 1.8, n).tolist()
    multiples = [1.0] if seed % 2 else [1.0, 2.0]
    capacities = capacities_of(loads, multiples)
    whole = rng.integers(0, 4, (400, len(multiples)))
    shares = rng.random((400, n)) * rng.choice([0.0, 1.0, 1.0], (400, n))
    most = np.maximum(shares @ loads, 1e-9)
    fits = np.minimum(1.0, whole @ multiples / most)[:, None]
    points = np.hstack([shares * fits, 1 - shares * fits, whole])
    found = 0
    for _ in range(50):
        x = np.minimum(1.0, rng.random(n) * 2)
        replicas = np.array([x @ loads, 0.0])[: len(multiples)]
        broken = np.concatenate([x, 1 - x, replicas])
        cuts = broken_cuts(capacities, broken)
        found += len(cuts)
        assert (activity(cuts, broken) < cuts.lower - 5e-5).all()
        of_points = np.zeros((len(cuts), len(points)))
        np.add.at(of_points, cuts.row_of, cuts.data[:, None] * points.T[cuts.indices])
        assert (of_points >= cuts.lower[:, None] - 1e-9).all()
    assert found


@pytest.mark.parametrize("seed", range(6))
def test_with_one_deployment_the_relaxation_is_exact(seed: int) -> None:
    """The inequalities describe the convex hull of one capacity row: nothing is left for a search to do."""
    loads = np.random.default_rng(seed).uniform(0.05, 1.8, 5).tolist()
    program = one_deployment(loads, [1.0])
    exact = open_backend("highs").solve(program, time_limit_s=20, mip_gap=0.0)
    relaxed = relax(program, read_structure(program), np.inf)
    assert relaxed is not None
    assert exact.objective is not None
    np.testing.assert_allclose(relaxed.bound, exact.objective, atol=2e-4)


def test_both_and_only() -> None:
    capacities = capacities_of([0.25, 0.5], [1.0])
    first = broken_cuts(capacities, np.array([1.0, 0.0, 0.0, 1.0, 0.25]))
    second = broken_cuts(capacities, np.array([0.0, 1.0, 1.0, 0.0, 0.5]))
    both = first.and_(second)
    assert len(both) == 2
    kept = both.only(np.array([False, True]))
    np.testing.assert_array_equal(kept.indices, second.indices)
    np.testing.assert_array_equal(kept.data, second.data)
    np.testing.assert_array_equal(kept.lower, second.lower)
