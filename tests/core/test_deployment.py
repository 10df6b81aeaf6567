"""Memory arithmetic against published figures."""

from __future__ import annotations

import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization


def deploy(model: str, quantization: str, gpu: str = "h100", tp: int = 1) -> Deployment:
    return Deployment(Model.named(model), Quantization.parse(quantization), Gpu.named(gpu), tp)


@pytest.mark.parametrize(
    ("model", "quantization", "gigabytes"),
    [
        # sizes of the weight files on Hugging Face, 10^9 bytes
        ("llama-2-7b", "FP16", 13.48),  # meta-llama/Llama-2-7b-hf, two safetensors shards: 9.98 + 3.50
        ("llama-2-70b", "FP16", 137.95),  # meta-llama/Llama-2-70b-hf, 15 shards
        ("llama-2-7b", "W4A16-AWQ", 3.89),  # TheBloke/Llama-2-7B-AWQ
        ("llama-2-13b", "W4A16-AWQ", 7.25),  # TheBloke/Llama-2-13B-AWQ
        ("llama-2-70b", "W4A16-AWQ", 36.61),  # TheBloke/Llama-2-70B-AWQ
        ("llama-2-7b", "Q8_0", 7.16),  # TheBloke/Llama-2-7B-GGUF
        ("llama-2-7b", "Q6_K", 5.53),
        ("llama-2-7b", "Q4_0", 3.83),
        ("llama-3.1-8b", "W8A8-FP", 9.08),  # RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8: head and embedding at 16 bits
    ],
)
def test_weights_take_what_published_files_take(model: str, quantization: str, gigabytes: float) -> None:
    assert deploy(model, quantization).weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


@pytest.mark.parametrize(
    ("model", "quantization", "kib"),
    [
        ("llama-2-7b", "FP16", 512),  # 2 x 32 layers x 4096 x 2 bytes: 0.5 MiB a token, as the vLLM paper's arithmetic
        ("llama-2-13b", "FP16", 800),  # PagedAttention paper (arXiv 2309.06180), section 3: 800 KB for a 13B model
        ("llama-2-70b", "FP16", 320),  # grouped-query attention: 8 KV heads of 64
        ("llama-3.1-8b", "FP16", 128),
        ("llama-2-13b", "W8A8KV8-FP", 400),
    ],
)
def test_the_kv_cache_takes_what_papers_state(model: str, quantization: str, kib: float) -> None:
    assert deploy(model, quantization).kv_bytes_per_token / 1024 == kib


def test_tensor_parallelism_divides_kv_heads_until_there_is_one_each() -> None:
    per_gpu = [deploy("llama-2-70b", "FP16", tp=tp).kv_bytes_per_token for tp in (1, 8, 16)]
    assert per_gpu[0] == 8 * per_gpu[1]
    assert per_gpu[1] == per_gpu[2]


@pytest.mark.parametrize(
    ("model", "quantization", "gpu", "tp", "fits"),
    [
        ("llama-2-70b", "FP16", "a100", 1, False),
        ("llama-2-70b", "FP16", "a100", 2, True),
        ("llama-2-70b", "W4A16", "a100", 1, True),
        ("llama-2-70b", "W8A16", "h200", 1, True),
        ("llama-2-13b", "FP16", "l4", 1, False),
        ("llama-2-13b", "W4A16", "l4", 1, True),
    ],
)
def test_what_fits_is_what_operators_know(model: str, quantization: str, gpu: str, tp: int, *, fits: bool) -> None:
    deployment = deploy(model, quantization, gpu, tp)
    assert deployment.memory().fits is fits
    assert (deployment.refusal() is None) is fits


def test_the_refusal_gives_the_numbers() -> None:
    assert deploy("llama-2-70b", "FP16", "a100").refusal() == (
        "llama-2-70b FP16 A100-SXM4-80GB x1 does not fit: 128.5 GiB of weights and 3.3 GiB of reserve on each GPU, "
        "which has 80.0 GiB"
    )


def test_tp_must_divide_the_heads() -> None:
    with pytest.raises(InputError, match="32 attention heads of llama-2-7b do not divide among TP3"):
        deploy("llama-2-7b", "FP16", tp=3)
    with pytest.raises(InputError, match="at least 1 GPU"):
        deploy("llama-2-7b", "FP16", tp=0)
