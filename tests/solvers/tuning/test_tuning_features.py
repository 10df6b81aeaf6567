"""What data sheets tell of configurations, and that the sampler of a tuning file is told."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qplan.solvers.tuning.features import features_of
from qplan.solvers.tuning.setup import sampler_of
from qplan.solvers.tuning.space import Configuration, Enumerated, enumerate_space
from qplan.solvers.tuning.tunefile import Tuning, parse_tuning

PLAN = """\
name: made
models: [{name: MODEL}]
space:
  quantization: [BF16, W8A16, W8A8-FP]
  gpu: [h100, h200, l4]
  tp: [1, 2]
  max_sequences: [16, 256]
  engine: vllm
objectives: [throughput, p90:ttft]
workload: chat
load: 1qps
budget: 6 measurements
"""


def plan(model: str = "llama-2-7b") -> tuple[Tuning, Enumerated]:
    tuning = parse_tuning(PLAN.replace("MODEL", model), "t.yaml")
    return tuning, enumerate_space(tuning.space, lambda _: None)


def column(told: NDArray[np.float64], wanted: NDArray[np.float64]) -> bool:
    """Whether a column says the same as what is wanted, up to scale and offset."""
    return bool((np.abs(np.corrcoef(told.T, wanted)[-1, :-1]) > 1 - 1e-9).any())


def of(enumerated: Enumerated, text: str) -> int:
    return [str(one) for one in enumerated.configurations].index(text)


@pytest.mark.parametrize("model", ["llama-2-7b", "of-our-own"])
def test_the_sampler_of_a_file_knows_gpus_by_their_data_sheets(model: str) -> None:
    tuning, enumerated = plan(model)
    features = sampler_of(tuning, enumerated).candidates.encoded()
    assert not features.categorical.any()
    near, own, far = (
        of(enumerated, f"BF16 {gpu} TP2 max_sequences=16") for gpu in ("H200-SXM", "H100-SXM5-80GB", "L4")
    )
    apart = np.sqrt((features.apart(np.array([own]), np.array([near, far])) ** 2).sum(axis=0))[0]
    assert apart[0] < apart[1] / 2


def test_the_times_that_bound_an_iteration_are_told() -> None:
    _, enumerated = plan()
    told = features_of(enumerated.configurations)
    compute = [
        -np.log(
            float((one.gpu.tflops_fp8 if one.target.quantization == "W8A8-FP" else one.gpu.tflops_16) or 0) * one.gpus
        )
        for one in enumerated.configurations
    ]
    assert column(told, np.array(compute))
    power = [np.log(float(one.gpu.tdp_w or 0) * one.gpus) for one in enumerated.configurations]
    assert column(told, np.array(power))


def test_memory_bounds_how_many_sequences_are_held() -> None:
    tuning, enumerated = plan("llama-2-13b")

    def held(context_tokens: int) -> NDArray[np.float64]:
        text = PLAN.replace("MODEL}", f"llama-2-13b, context: {context_tokens}}}")
        return features_of(enumerate_space(parse_tuning(text, "t").space, lambda _: None).configurations)

    assert tuning.space.models[0].name == "llama-2-13b"
    # So short that all fit: the memory says nothing that the number of sequences does not.
    assert held(16).shape[1] == held(4096).shape[1] - 1
    assert len(enumerated.configurations) == len(held(16))


def test_what_says_nothing_new_is_left_out_and_one_configuration_has_nothing_to_tell() -> None:
    _, enumerated = plan()
    alike: list[Configuration] = [
        one for one in enumerated.configurations if str(one).startswith("BF16 L4") or str(one).startswith("W8A16 L4")
    ]
    told = features_of(alike)
    whole = np.corrcoef(told.T) - np.eye(told.shape[1])
    assert (np.abs(whole) < 1 - 1e-9).all()
    assert features_of(alike[:1]).shape == (1, 0)
