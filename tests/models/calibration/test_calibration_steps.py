from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.calibration import ClosedLoad, ClosedLoopPrior, Correction, calibrate, corrected_steps
from qplan.models.profiled import Profiled
from qplan.models.steptimes import StepTimes

NAMES = ("weights", "batching", "prefills", "step host")


def correction(*coefficients: float) -> Correction:
    return Correction(NAMES, coefficients, (0.1,) * 4, 0, ())


def test_loops_on_corrected_steps_have_the_corrected_tpot(
    profile: Profiled, prior: ClosedLoopPrior, loads: Callable[[int], list[ClosedLoad]]
) -> None:
    rows = loads(0)
    calibrated = calibrate(prior, rows, {"tpot": 1e-3 + 1.4 * prior(rows)["tpot"].total})
    steps = corrected_steps(profile.steps, calibrated.corrections["tpot"])
    again = ClosedLoopPrior(replace(profile, steps=steps))
    assert again(rows)["tpot"].total == pytest.approx(calibrated(rows)["tpot"].total, rel=1e-6)


def test_the_plain_coefficients_change_nothing(profile: Profiled) -> None:
    steps = corrected_steps(profile.steps, correction(1, 1, 1, 0))
    assert steps.decode_s == pytest.approx(profile.steps.decode_s)
    assert steps.prefill_s == pytest.approx(profile.steps.prefill_s)


@pytest.mark.parametrize("batches", [[1.0, 4.0, 9.0], [0.5, 1.0, 4.0], [0.5, 2.0, 4.0], [2.0, 4.0, 9.0]])
def test_corrected_steps_never_fall(batches: list[float]) -> None:
    """Of a table in which a batch adds less in longer contexts, too."""
    decode_s = np.array([[[1.0, 2.0], [3.0, 3.1], [5.0, 5.1]]])
    steps = StepTimes(np.array([1.0, 9.0]), np.ones((1, 2)), np.array(batches), np.array([1.0, 9.0]), decode_s)
    corrected = corrected_steps(steps, correction(0.1, 2.0, 1.0, 0.0)).decode_s
    assert (np.diff(corrected, axis=1) >= 0).all()
    assert (np.diff(corrected, axis=2) >= 0).all()


def test_only_the_parts_of_tpot_correct_steps(profile: Profiled) -> None:
    with pytest.raises(InputError, match="this correction has whole"):
        corrected_steps(profile.steps, Correction(("whole",), (1.0,), (1.0,), 0, ()))
