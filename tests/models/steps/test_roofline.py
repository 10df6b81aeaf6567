from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.steps.roofline import Terms, peak_flops, terms
from tests.models.steps.made_up import deployment

# Llama-2-7B: 32 layers of 4 x 4096² and 3 x 4096 x 11008 weights, a head of 4096 x 32000, 32 heads of 128.
LINEAR, HEAD = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 4096 * 32000


def work(prefill: float, batch: float, kv: float, one: Deployment, prompts: float = 1.0) -> Terms:
    return terms(one, np.array([prefill]), np.array([batch]), np.array([kv]), prompts)


def test_a_decode_iteration_by_hand() -> None:
    found = work(0, 8, 8 * 1000, deployment("llama-2-7b"))
    assert found.weight_bytes[0] == 2 * (LINEAR + HEAD)
    assert found.weights_s[0] == pytest.approx(2 * (LINEAR + HEAD) / 2.039e12)
    assert found.kv_bytes[0] == (8000 + 8) * 2 * 32 * 4096 * 2
    assert found.gemm_flops[0] == 2 * LINEAR * 8
    assert found.head_flops[0] == 2 * HEAD * 8
    assert found.attention_flops[0] == 4 * 32 * 4096 * 8000
    assert found.gemm_s[0] == pytest.approx(2 * LINEAR * 8 / 312e12)
    assert found.allreduce_bytes[0] == found.allreduces[0] == 0
    assert found.memory_s[0] == pytest.approx(found.weights_s[0] + found.kv_s[0])
    assert found.compute_s[0] == pytest.approx(found.gemm_s[0] + found.head_s[0] + found.attention_s[0])


def test_prompts_attend_to_themselves_alone() -> None:
    one, two = (work(1024, 0, 0, deployment("llama-2-7b"), prompts) for prompts in (1, 2))
    assert one.attention_flops[0] == 4 * 32 * 4096 * 1024**2 / 2
    assert two.attention_flops[0] == one.attention_flops[0] / 2
    assert two.head_flops[0] == 2 * one.head_flops[0]
    assert two.gemm_flops[0] == one.gemm_flops[0]


def test_tensor_parallelism_divides_the_work_and_adds_all_reduces() -> None:
    whole, quarter = (work(512, 8, 8000, deployment("llama-2-7b", tp=tp)) for tp in (1, 4))
    for name in ("weight_bytes", "kv_bytes", "gemm_flops", "attention_flops"):
        assert getattr(quarter, name)[0] == pytest.approx(getattr(whole, name)[0] / 4)
    assert quarter.allreduce_bytes[0] == pytest.approx(2 * 3 / 4 * 2 * 32 * 520 * 4096 * 2)
    assert quarter.allreduces[0] == 64


def test_quantization_shrinks_weights_and_cache_but_not_the_head() -> None:
    plain, small = (work(0, 8, 8000, deployment("llama-2-7b", q, "h100")) for q in ("BF16", "W8A8KV8-FP"))
    assert small.weight_bytes[0] == pytest.approx(LINEAR + 2 * HEAD, rel=0.02)
    assert small.kv_bytes[0] == plain.kv_bytes[0] / 2
    assert small.gemm_s[0] == pytest.approx(plain.gemm_s[0] / 2, rel=1e-3)
    assert small.head_s[0] == plain.head_s[0]


@pytest.mark.parametrize(
    ("gpu", "quantization", "tflops"),
    [("a100", "W8A8-INT", 624), ("a100", "W4A16", 312), ("h100", "W8A8-FP", 1978.9), ("a100", "W8A8-FP", 312)],
)
def test_peaks_follow_the_activations(gpu: str, quantization: str, tflops: float) -> None:
    assert peak_flops(Gpu.named(gpu), Quantization.parse(quantization)) == pytest.approx(tflops * 1e12)


def test_a_mixture_reads_more_experts_for_more_tokens() -> None:
    dense = Model.named("llama-2-7b")
    mixture = Deployment(
        dataclasses.replace(dense, experts=8, experts_per_token=2), Quantization.parse("BF16"), Gpu.named("h100")
    )
    expert = 32 * 3 * 4096 * 11008
    one, many = work(0, 1, 0, mixture), work(0, 1000, 0, mixture)
    assert many.weight_bytes[0] - one.weight_bytes[0] == pytest.approx(2 * 6 * expert)
    assert one.gemm_flops[0] == pytest.approx(2 * (LINEAR + expert + 32 * 8 * 4096))


def test_nothing_takes_no_time() -> None:
    empty = work(0, 0, 0, deployment(tp=2))
    assert empty.memory_s[0] == empty.compute_s[0] == empty.allreduce_s[0] == empty.launch_s[0] == 0


def test_several_gpus_need_an_interconnect() -> None:
    lonely = dataclasses.replace(Gpu.named("l40s"), interconnect_gb_s=None)
    with pytest.raises(InputError, match="no known interconnect"):
        work(0, 1, 10, Deployment(Model.named("llama-2-7b"), Quantization.parse("BF16"), lonely, 2))
