from __future__ import annotations

import sys

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.models.steps.fitting import fit_steps
from qplan.models.steps.parts import NOMINAL
from qplan.models.steps.points import StepPoints
from qplan.models.steps.surrogate import StepSurrogate, branch_of
from qplan.models.steptimes import Floats
from tests.models.steps.made_up import deployment, timed, true_s

KNOWN = [deployment(m, q, tp=tp) for m in ("llama-2-7b", "llama-2-13b") for q in ("BF16", "W4A16") for tp in (1, 2, 4)]
BETWEEN = np.array([0, 0, 0, 300.0, 700]), np.array([2.0, 40, 200, 0, 0]), np.array([2500.0, 40000, 2e5, 0, 0])
BEYOND = np.array([0.0, 12000]), np.array([512.0, 0]), np.array([512 * 8000.0, 0])


def errors(surrogate: StepSurrogate, one: Deployment, work: tuple[Floats, Floats, Floats]) -> Floats:
    return np.abs(surrogate.iteration_s(one, *work) / true_s(one, *work) - 1)


@pytest.fixture(scope="module")
def fitted() -> StepSurrogate:
    return fit_steps(timed(KNOWN))


def test_points_between_and_beyond_the_measured_are_predicted(fitted: StepSurrogate) -> None:
    for one in KNOWN:
        assert errors(fitted, one, BETWEEN).max() < 0.02
        assert errors(fitted, one, BEYOND).max() < 0.15


@pytest.mark.parametrize(
    ("one", "level", "bound"),
    [
        (deployment("llama-2-70b", "BF16", tp=4), "GPU, engine and quantization", 0.10),
        (deployment("llama-2-13b", "W4A16", tp=8), "deployment at other tensor parallelism", 0.25),
        (deployment("llama-2-13b", "W8A16"), "GPU, engine and arithmetic", 0.10),
        (deployment("llama-2-13b", "W8A8-INT"), "GPU and engine", 0.15),
    ],
    ids=str,
)
def test_an_unseen_deployment_is_predicted_by_its_relatives(
    fitted: StepSurrogate, one: Deployment, level: str, bound: float
) -> None:
    assert fitted.level(one) == level
    assert errors(fitted, one, BETWEEN).max() < bound


def test_a_deployment_with_few_points_stays_near_its_relatives() -> None:
    slow = deployment("llama-2-70b", tp=4)
    relatives = timed([one for one in KNOWN if str(one.quantization) == "BF16"])
    few = timed([slow]).take(np.arange(20) == 7)  # one decode iteration of 4 sequences
    both = StepPoints(
        (*relatives.deployments, slow),
        np.append(relatives.index, len(relatives.deployments)),
        *(
            np.append(getattr(relatives, name), getattr(few, name) * (1.3 if name == "time_s" else 1.0))
            for name in ("prefill_tokens", "batch", "kv_tokens", "prompts", "time_s")
        ),
    )
    surrogate = fit_steps(both)
    assert surrogate.level(slow) == "deployment"
    seen = few.prefill_tokens, few.batch, few.kv_tokens
    assert surrogate.iteration_s(slow, *seen)[0] == pytest.approx(few.time_s[0] * 1.3, rel=0.03)
    # What that point does not exercise is as the relatives have it.
    long = np.array([4096.0]), np.zeros(1), np.zeros(1)
    assert surrogate.iteration_s(slow, *long)[0] == pytest.approx(true_s(slow, *long)[0], rel=0.1)


def test_noise_is_not_followed() -> None:
    one = KNOWN[0]
    surrogate = fit_steps(timed([one], noise=0.05))
    assert np.median(errors(surrogate, one, BETWEEN)) < 0.05


def test_without_points_of_a_gpu_its_data_sheet_answers(fitted: StepSurrogate) -> None:
    one = deployment(gpu="h100")
    assert fitted.level(one) == "data sheet"
    assert (fitted.factors_of(one) == NOMINAL).all()


def test_factors_are_never_negative(fitted: StepSurrogate) -> None:
    assert all((factors >= 0).all() for factors in fitted.factors.values())
    assert branch_of(KNOWN[0]) in fitted.factors


def test_no_points_are_refused() -> None:
    points = timed([deployment()])
    with pytest.raises(InputError, match="no timed iterations"):
        fit_steps(points.take(points.batch < 0))


def test_without_scipy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'qplan\[models\]'"):
        fit_steps(timed([deployment()]))
