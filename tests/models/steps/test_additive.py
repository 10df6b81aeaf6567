"""Iteration times of an engine that gains nothing from batching."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from qplan.core import InputError
from qplan.models.iterations import IterationGrid
from qplan.models.steps.additive import AdditiveSteps, fit_additive
from qplan.models.steptimes import Floats

TRUE = AdditiveSteps(10e-3, 4e-3, 12e-3)
PROMPTS = np.array([16.0, 16.0, 32.0, 32.0])


def at(grid: IterationGrid, tokens: float, batch: float, context: float) -> float:
    return float(grid.at(np.array([tokens]), np.array([batch]), np.array([batch * context]))[0])


def alone(grid: IterationGrid) -> tuple[Floats, Floats]:
    """TTFT and TPOT of requests that meet no other."""
    ttft_s = np.array([at(grid, tokens, 0, 0) for tokens in PROMPTS])
    return ttft_s, np.full(4, at(grid, 0, 1, 20))


def test_parts_of_an_iteration_add_up() -> None:
    grid = TRUE.grid(8)
    assert at(grid, 0, 0, 0) == 0
    assert at(grid, 1, 0, 0) == pytest.approx(14e-3)
    assert at(grid, 16, 0, 0) == pytest.approx(74e-3)
    assert at(grid, 0, 3, 100) == pytest.approx(36e-3)
    assert at(grid, 16, 3, 100) == pytest.approx(110e-3)


def test_runs_of_two_lengths_tell_the_parts_apart() -> None:
    ttft_s, tpot_s = alone(TRUE.grid(8))
    found = fit_additive(PROMPTS, ttft_s, tpot_s, alone, 8)
    assert found.prompt_s == pytest.approx(TRUE.prompt_s, rel=0.05)
    assert found.prompt_token_s == pytest.approx(TRUE.prompt_token_s, rel=0.02)
    assert found.sequence_s == pytest.approx(TRUE.sequence_s, rel=0.01)


def test_a_run_that_went_astray_counts_for_little() -> None:
    ttft_s, tpot_s = alone(TRUE.grid(8))
    tpot_s[0] *= 5
    assert fit_additive(PROMPTS, ttft_s, tpot_s, alone, 8).sequence_s == pytest.approx(TRUE.sequence_s, rel=0.08)


def test_a_run_without_a_prediction_is_left_out() -> None:
    ttft_s, tpot_s = alone(TRUE.grid(8))
    tpot_s[3] *= 100

    def predict(grid: IterationGrid) -> tuple[Floats, Floats]:
        ttft, tpot = alone(grid)
        tpot[3] = np.nan
        return ttft, tpot

    assert fit_additive(PROMPTS, ttft_s, tpot_s, predict, 8).sequence_s == pytest.approx(TRUE.sequence_s, rel=0.01)


def test_nothing_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    none = np.zeros(0)
    with pytest.raises(InputError, match="no run under load"):
        fit_additive(none, none, none, alone, 8)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'qplan\[models\]'"):
        fit_additive(none, none, none, alone, 8)
