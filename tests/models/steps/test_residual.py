from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qplan.models.steps.fitting import fit_steps
from qplan.models.steps.parts import NOMINAL, Parts
from qplan.models.steps.points import StepPoints
from qplan.models.steps.residual import DecodeResidual
from qplan.models.steps.surrogate import StepSurrogate
from qplan.models.steptimes import Floats
from tests.models.steps.made_up import BATCHES, CONTEXTS, deployment, timed

ONE = deployment()
RNG = np.random.default_rng(11)


def bent(size: float) -> StepPoints:
    """Time an engine whose attention kernel slows down by `size` for long sequences in large batches, in part."""
    points = timed([ONE])
    context = points.kv_tokens / np.maximum(points.batch, 1)
    wave = 1 + size * np.sin(np.log1p(points.batch)) * np.cos(np.log1p(context))
    return dataclasses.replace(points, time_s=points.time_s * np.where(points.batch > 0, wave, 1.0))


@pytest.fixture(scope="module")
def fitted() -> StepSurrogate:
    return fit_steps(bent(0.05))


def test_timed_iterations_are_reproduced(fitted: StepSurrogate) -> None:
    points = bent(0.05)
    decode = points.take(points.batch > 0)
    predicted = fitted.iteration_s(ONE, decode.prefill_tokens, decode.batch, decode.kv_tokens)
    alone = StepSurrogate(fitted.factors).iteration_s(ONE, decode.prefill_tokens, decode.batch, decode.kv_tokens)
    error, before = (np.abs(times / decode.time_s - 1) for times in (predicted, alone))
    assert np.median(error) < 0.002
    assert np.median(before) > 0.01


@pytest.mark.parametrize("size", [0.05, 0.6], ids=["small", "wild"])
def test_times_never_fall(size: float) -> None:
    surrogate = fit_steps(bent(size))
    count = 3000
    prefill = np.round(RNG.random(count) * (RNG.random(count) < 0.5) * 5000)
    batch, context = np.ceil(RNG.random(count) * 700), np.ceil(10 ** (RNG.random(count) * 5))

    def time_s(prefill: Floats, batch: Floats, context: Floats) -> Floats:
        return surrogate.iteration_s(ONE, prefill, batch, batch * context)

    before = time_s(prefill, batch, context)
    step = np.ceil(RNG.random(count) * 200)
    for after in (time_s(prefill + step, batch, context), time_s(prefill, batch + step, context),
                  time_s(prefill, batch, context + step)):  # fmt: skip
        assert (after >= before * (1 - 1e-9)).all()


def test_it_fades_far_from_the_grid(fitted: StepSurrogate) -> None:
    parts = StepSurrogate(fitted.factors)
    batch, kv_tokens = np.array([2048.0]), np.array([2048 * 262144.0])
    ratio = fitted.iteration_s(ONE, np.zeros(1), batch, kv_tokens) / parts.iteration_s(
        ONE, np.zeros(1), batch, kv_tokens
    )
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_prefill_is_left_alone(fitted: StepSurrogate) -> None:
    work = np.array([100.0, 3000]), np.zeros(2), np.zeros(2)
    assert (fitted.iteration_s(ONE, *work) == StepSurrogate(fitted.factors).iteration_s(ONE, *work)).all()


def test_relatives_do_not_take_it_over(fitted: StepSurrogate) -> None:
    other = deployment(tp=2)
    work = np.zeros(2), np.array([4.0, 64]), np.array([256.0, 32768])
    assert (fitted.iteration_s(other, *work) == StepSurrogate(fitted.factors).iteration_s(other, *work)).all()


def test_repeats_are_averaged_and_gaps_take_their_neighbours_ratio() -> None:
    batch, context = np.array([1.0, 1, 1, 8]), np.array([64.0, 64, 1024, 64])
    residual = DecodeResidual.of(batch, context, np.array([0.1, 0.3, 0.4, -0.2]))
    assert residual is not None
    np.testing.assert_allclose(residual.log_ratio, [[0.2, 0.4], [-0.2, -0.2]])


@pytest.mark.parametrize("axis", ["batch", "context"])
def test_points_along_one_line_span_no_grid(axis: str) -> None:
    line, constant = (
        (BATCHES, np.full(len(BATCHES), 64.0)) if axis == "batch" else (np.full(len(CONTEXTS), 4.0), CONTEXTS)
    )
    assert DecodeResidual.of(line, constant, np.zeros(len(line))) is None


def test_a_ratio_of_one_changes_nothing_at_its_points() -> None:
    b, c = (axis.ravel() for axis in np.meshgrid(BATCHES, CONTEXTS, indexing="ij"))
    residual = DecodeResidual.of(b, c, np.zeros(len(b)))
    assert residual is not None
    parts, nothing = Parts.of(ONE), np.zeros(len(b))
    of_tokens = parts.time_s(parts.of_tokens(NOMINAL), nothing, b, b * c)
    whole = of_tokens + residual.rest_s(parts, NOMINAL, b, b * c)
    np.testing.assert_allclose(whole, parts.time_s(NOMINAL, nothing, b, b * c), rtol=1e-9)
