from __future__ import annotations

import sys

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration.fit import fit

TRUE = np.array([0.7, 2.0, 0.0])
SECONDS = np.random.default_rng(5).uniform(0.1, 1.0, (12, 3))


def test_many_points_outweigh_the_prior() -> None:
    coefficients, deviation = fit(SECONDS, SECONDS @ TRUE, np.ones(3), np.full(3, 10.0), 0.01)
    assert coefficients == pytest.approx(TRUE, abs=0.01)
    assert (deviation < 0.1).all()


def test_without_points_the_prior_remains() -> None:
    mean, deviation = np.array([0.5, 1.5, 0.1]), np.array([0.2, 0.3, 0.4])
    coefficients, doubt = fit(np.empty((0, 3)), np.empty(0), mean, deviation, 0.05)
    assert coefficients == pytest.approx(mean)
    assert doubt == pytest.approx(deviation)


def test_coefficients_are_never_negative() -> None:
    # The best unbounded fit of these has a coefficient below 0.
    seconds = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    coefficients, _ = fit(seconds, np.array([3.0, 2.0, 1.0]), np.ones(2), np.full(2, 100.0), 0.05)
    assert (coefficients >= 0).all()
    assert coefficients[1] == 0


def test_one_wild_run_of_twelve_changes_little() -> None:
    measured = SECONDS @ TRUE
    measured[3] *= 50
    coefficients, _ = fit(SECONDS, measured, np.ones(3), np.full(3, 1.0), 0.02)
    assert coefficients == pytest.approx(TRUE, abs=0.05)


def test_errors_count_by_ratio_not_by_size() -> None:
    """Of two runs that cannot both be met, a long one does not win: the fit is off by the same factor on either."""
    coefficients, _ = fit(np.array([[1.0], [100.0]]), np.array([2.0, 50.0]), np.ones(1), np.full(1, 100.0), 0.5)
    assert coefficients[0] == pytest.approx(1.0, rel=0.02)


def test_parts_that_the_prior_counts_as_nothing_can_be_found() -> None:
    coefficients, _ = fit(np.array([[1.0], [2.0]]), np.array([3.0, 6.0]), np.zeros(1), np.ones(1), 0.05)
    assert coefficients[0] == pytest.approx(3.0, rel=0.05)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'qplan\[models\]'"):
        fit(SECONDS, SECONDS @ TRUE, np.ones(3), np.ones(3), 0.05)
