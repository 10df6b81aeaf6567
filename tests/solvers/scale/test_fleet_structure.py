from __future__ import annotations

import numpy as np

from qplan.solvers.backends import MatrixProgram
from qplan.solvers.scale.pieces import loose_pieces, restricted, without_fixed
from qplan.solvers.scale.structure import read_structure

EMPTY = np.empty(0)


def two_models(*, inventory: float = np.inf) -> MatrixProgram:
    """Two demands on a deployment each, with a fixed scale, an average quality and a shared inventory."""
    return (
        MatrixProgram(EMPTY, EMPTY, EMPTY, np.empty(0, bool), ())
        .with_columns(["share a", "share b"])
        .with_columns(["count a", "count b"], integer=True)
        .with_columns(["scale"], lower=2.0, upper=2.0)
        .with_cost([2, 3], [1.0, 1.0])
        .with_row([0, 4], [1.0, -1.0], lower=0.0, upper=0.0)
        .with_row([1, 4], [4.0, -1.0], lower=0.0, upper=0.0)
        .with_row([0, 2], [0.6, -2.0], upper=0.0)
        .with_row([1, 3], [3.0, -1.0], upper=0.0)
        .with_row([0], [0.1], lower=0.0)
        .with_row([2, 3], [1.0, 1.0], upper=inventory)
    )


def test_fixed_columns_move_to_the_other_side() -> None:
    free, values = without_fixed(two_models())
    np.testing.assert_array_equal(free.columns, [0, 1, 2, 3])
    np.testing.assert_array_equal(values, [0, 0, 0, 0, 2.0])
    np.testing.assert_array_equal(free.program.row_lower[:2], [2.0, 2.0])
    np.testing.assert_array_equal(free.program.row_upper[:3], [2.0, 2.0, 0.0])


def test_demand_and_capacity_rows_are_read() -> None:
    found = read_structure(without_fixed(two_models())[0].program)
    np.testing.assert_array_equal(found.demand, [0, 1, -1, -1])
    np.testing.assert_allclose(found.upper[:2], [2.0, 0.5])
    np.testing.assert_array_equal(found.load_row, [2, 3])
    np.testing.assert_allclose(found.load, [0.6, 1.5])  # replicas of 2 and of 1
    np.testing.assert_array_equal(found.whole_column, [2, 3])
    np.testing.assert_allclose(found.multiple, [1.0, 1.0])


def test_an_inventory_bounds_the_counts() -> None:
    np.testing.assert_array_equal(read_structure(two_models(inventory=3.5)).upper[2:4], [3.0, 3.0])


def test_rows_that_only_look_like_capacity() -> None:
    """A fractional kind of replica, a constant, a load that may be negative: the inequalities would not hold."""
    start = (
        MatrixProgram(EMPTY, EMPTY, EMPTY, np.empty(0, bool), ())
        .with_columns(["x", "y"], upper=1.0)
        .with_columns(["signed"], lower=-1.0, upper=1.0)
        .with_columns(["n", "m"], integer=True, upper=9.0)
    )
    assert len(read_structure(start.with_row([0, 3], [0.5, -1.0], upper=0.0)).load) == 1
    for columns, values, upper in (
        ([0, 3, 4], [0.5, -1.0, -1.5], 0.0),
        ([0, 3], [0.5, -1.0], 0.3),
        ([2, 3], [0.5, -1.0], 0.0),
        ([0, 1, 3], [0.5, -0.2, -1.0], 0.0),
    ):
        assert not len(read_structure(start.with_row(columns, values, upper=upper)).load)


def test_replicas_that_warm_up_count_against_those_that_serve() -> None:
    program = (
        MatrixProgram(EMPTY, EMPTY, EMPTY, np.empty(0, bool), ())
        .with_columns(["x"], upper=1.0)
        .with_columns(["count", "start"], integer=True, upper=9.0)
        .with_row([0, 1, 2], [0.5, -1.0, 1.0], upper=0.0)
    )
    found = read_structure(program)
    np.testing.assert_array_equal(found.multiple, [1.0, -1.0])


def test_models_fall_apart_without_the_inventory() -> None:
    program = without_fixed(two_models(inventory=9.0))[0].program
    pieces, linking = loose_pieces(program, read_structure(program))
    np.testing.assert_array_equal(np.flatnonzero(linking), [5])
    assert [piece.columns.tolist() for piece in pieces] == [[0, 2], [1, 3]]
    assert [len(piece.program.row_lower) for piece in pieces] == [3, 2]


def test_columns_without_demand_form_a_piece_of_their_own() -> None:
    program = without_fixed(two_models())[0].program.with_columns(["idle", "other"], upper=4.0)
    pieces, _ = loose_pieces(program, read_structure(program))
    assert [piece.columns.tolist() for piece in pieces] == [[0, 2], [1, 3], [4, 5]]


def test_a_restricted_program_keeps_the_rows_that_cannot_hold_any_more() -> None:
    program = without_fixed(two_models())[0].program
    part = restricted(program, np.array([True, False, True, True])).program
    assert part.row_lower.tolist() == [2.0, 2.0, -np.inf, -np.inf, 0.0, -np.inf]
    assert np.diff(part.indptr).tolist() == [1, 0, 2, 1, 1, 2]
