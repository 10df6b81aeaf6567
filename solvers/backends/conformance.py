"""What every solver backend must pass.

A package that brings a backend tests it so::

    from qplan.solvers.backends.conformance import BackendConformance

    class TestMine(BackendConformance):
        name = "mine"
"""

from __future__ import annotations

import numpy as np

from qplan.solvers.backends import open_backend
from qplan.solvers.backends.contract import (
    OPTIMAL_GAP,
    MatrixProgram,
    Solution,
    SolverBackend,
    feasible_point,
)


class BackendConformance:
    """Tests of one backend, to be collected by pytest from a subclass that sets `name`.

    Attributes
    ----------
    name
        What :func:`~qplan.solvers.backends.open_backend` is called with.
    time_limit_s
        The limit of the time-limited run; long enough that the solver starts its search.
    """

    name: str
    time_limit_s = 1.0

    def open(self) -> SolverBackend:
        """Return the backend under test."""
        return open_backend(self.name)

    def solve(self, program: MatrixProgram, *, time_limit_s: float = 60.0, mip_gap: float = 0.0) -> Solution:
        """Solve, and check what holds of every answer."""
        answer = self.open().solve(program, time_limit_s=time_limit_s, mip_gap=mip_gap)
        assert (answer.values is not None) == (answer.status in ("optimal", "feasible"))
        assert (answer.objective is None) == (answer.values is None)
        assert (answer.gap is None) == (answer.objective is None or answer.bound is None)
        assert answer.seconds > 0
        if answer.values is not None and answer.objective is not None:
            point = feasible_point(program, answer.values)
            assert point is not None
            np.testing.assert_array_equal(point, answer.values)
            assert answer.objective == float(program.cost @ answer.values)
            if answer.bound is not None:
                assert answer.bound <= answer.objective
        if answer.status == "optimal":
            assert answer.gap is not None
            assert answer.gap <= OPTIMAL_GAP * max(1.0, 1 / abs(answer.objective or 1.0))
        return answer

    def test_its_name_opens_it(self) -> None:
        """The name that opens the backend is the name it carries."""
        assert self.open().name == self.name

    def test_knapsack(self) -> None:
        """Cover 17 with pieces of 5 and 3 that cost 4 and 3.

        Three and one cover 18 and cost 15; 14 buys at most 16.
        """
        program = _program([4.0, 3.0], integer=True).with_row([0, 1], [5.0, 3.0], lower=17.0)
        answer = self.solve(program)
        assert answer.status == "optimal"
        assert answer.objective == 15.0

    def test_linear_program(self) -> None:
        """The fractional optimum of the same cover is 17 / 5 pieces of 5."""
        answer = self.solve(_program([4.0, 3.0]).with_row([0, 1], [5.0, 3.0], lower=17.0))
        assert answer.status == "optimal"
        np.testing.assert_allclose(answer.objective or 0.0, 13.6, rtol=1e-7)

    def test_mixed_columns_bounds_and_range_rows(self) -> None:
        """One integer column up to 2, one continuous below zero, a row bounded on both sides, an equality."""
        program = (
            _program([-1.0], integer=True, upper=2.0)
            .with_columns(["slack"], cost=1.0, lower=-5.0, upper=np.inf)
            .with_columns(["unused"])
            .with_row([0, 1], [1.0, 1.0], lower=-1.0, upper=1.5)
            .with_row([0, 1], [2.0, -1.0], lower=4.5, upper=4.5)
        )
        answer = self.solve(program)
        assert answer.status == "optimal"
        assert answer.values is not None
        # The equality makes slack = 2 n - 4.5, so the cost is n - 4.5; the range row asks n >= 7/6.
        np.testing.assert_allclose(answer.values[:2], [2.0, -0.5], atol=1e-6)

    def test_without_an_objective(self) -> None:
        """All costs zero: any feasible point is optimal."""
        answer = self.solve(_program([0.0], integer=True).with_row([0], [2.0], lower=3.0, upper=5.0))
        assert answer.status == "optimal"
        assert answer.values is not None
        assert answer.values[0] == 2.0

    def test_infeasible(self) -> None:
        """Twice an integer is never three, though the relaxation is feasible."""
        program = _program([1.0, 1.0], integer=True).with_row([0, 1], 2.0, lower=3.0, upper=3.0)
        assert self.solve(program).status == "infeasible"

    def test_infeasible_though_the_objective_could_fall(self) -> None:
        """Two rows contradict each other; the objective has no floor either."""
        program = _program([-1.0, 0.0]).with_row([1], 1.0, lower=2.0).with_row([1], 1.0, upper=1.0)
        assert self.solve(program).status == "infeasible"

    def test_unbounded(self) -> None:
        """The objective falls forever, once along a row and once free of it."""
        for cost in ([-1.0, 0.5], [-1.0, 0.0]):
            assert self.solve(_program(cost).with_row([0, 1], [1.0, -1.0], lower=1.0)).status == "unbounded"

    def test_a_gap_that_was_asked_for_is_reported(self) -> None:
        """Stopping early is stated as such, with a bound that holds."""
        program = covering()
        exact = self.solve(program)
        loose = self.solve(program, mip_gap=0.2)
        assert exact.status == "optimal"
        assert exact.objective is not None
        assert loose.objective is not None
        assert loose.bound is not None
        assert loose.bound <= exact.objective * (1 + 1e-6)
        assert exact.objective * (1 - 1e-6) <= loose.objective <= exact.objective / (1 - 0.2) + 1e-6
        assert (loose.status == "optimal") == (loose.objective <= loose.bound * (1 + OPTIMAL_GAP))

    def test_a_time_limit_with_a_solution_in_hand_is_not_optimal(self) -> None:
        """A solution without its proof is feasible at most."""
        answer = self.solve(market_split(slack=True), time_limit_s=self.time_limit_s)
        assert answer.status in ("feasible", "no-solution")
        assert answer.gap is None or answer.gap > OPTIMAL_GAP

    def test_a_time_limit_without_a_solution_finds_none(self) -> None:
        """The relaxation is feasible and fractional: a backend that hands those values on is caught here."""
        answer = self.solve(market_split(slack=False), time_limit_s=self.time_limit_s)
        assert answer.status == "no-solution"
        assert answer.objective is None

    def test_a_start_changes_nothing_that_is_proven(self) -> None:
        """Begun from a dear point, the search ends at the optimum all the same."""
        program = covering()
        start = np.full(len(program.cost), 6.0)
        answer = self.open().solve(program, time_limit_s=60.0, mip_gap=0.0, start=start)
        exact = self.solve(program)
        assert answer.status == exact.status == "optimal"
        np.testing.assert_allclose(answer.objective or 0.0, exact.objective or 0.0, rtol=1e-6)

    def test_the_same_program_gives_the_same_answer(self) -> None:
        """Solving twice gives the same values."""
        first, second = self.solve(covering()), self.solve(covering())
        assert first.values is not None
        assert second.values is not None
        np.testing.assert_array_equal(first.values, second.values)

    def test_the_program_is_left_as_it_was(self) -> None:
        """A backend does not write into the arrays that it is handed."""
        program = covering()
        arrays = [program.cost, program.data, program.row_lower, program.upper]
        before = [array.copy() for array in arrays]
        self.solve(program)
        for old, new in zip(before, arrays, strict=True):
            np.testing.assert_array_equal(old, new)


def covering() -> MatrixProgram:
    """Return a program that takes a real search and little time: 5 rows to cover with 30 integer columns."""
    rng = np.random.default_rng(0)
    pieces = rng.integers(1, 100, (5, 30))
    rows, columns = np.indices(pieces.shape)
    return _program(rng.integers(20, 60, 30), integer=True).with_rows(
        rows.ravel(), columns.ravel(), pieces.ravel(), 3.0 * pieces.sum(1), np.full(5, np.inf)
    )


def market_split(*, slack: bool) -> MatrixProgram:
    """Return a program that no branch and bound finishes: a market split instance of 6 rows, 50 binaries.

    G. Cornuejols and M. Dawande, "A class of hard small 0-1 programs", INFORMS J. Computing 11(2), 1999:
    split every row's sum in half. With `slack` the miss is minimised, and solutions are easy while proofs
    are not; without it finding any solution is the hard part.
    """
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 100, (6, 50))
    half = sizes.sum(1) // 2
    rows, columns = np.nonzero(sizes)
    values = sizes[rows, columns].astype(float)
    program = _program(np.zeros(50) if slack else rng.integers(1, 9, 50), integer=True, upper=1.0)
    if slack:
        program = program.with_columns([f"over{i}" for i in range(6)], cost=1.0)
        program = program.with_columns([f"under{i}" for i in range(6)], cost=1.0)
        rows = np.concatenate([rows, np.arange(6), np.arange(6)])
        columns = np.concatenate([columns, np.arange(50, 62)])
        values = np.concatenate([values, -np.ones(6), np.ones(6)])
    return program.with_rows(rows, columns, values, half, half)


def _program(cost: object, *, integer: bool = False, upper: float = np.inf) -> MatrixProgram:
    costs = np.asarray(cost, float)
    empty = np.empty(0)
    start = MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
    columns = start.with_columns([f"x{j}" for j in range(len(costs))], upper=upper, integer=integer)
    return columns.with_cost(np.arange(len(costs)), costs)
