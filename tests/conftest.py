"""A self-made profile that every layer's tests share: step times from a roofline, close to no real engine."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core import Deployment, Gpu, Model, Quantization
from qplan.models.steptimes import StepTimes

PREFILL_TOKENS = np.array([16, 64, 256, 1024, 4096, 16384], dtype=float)
BATCHES = np.array([1, 4, 16, 64, 256, 512], dtype=float)
CONTEXTS = np.array([64, 512, 2048, 8192], dtype=float)


def roofline(deployment: Deployment) -> tuple[np.ndarray, np.ndarray]:
    """Return prefill times (P,) and decode times (B, C) in seconds: bytes over bandwidth or operations over peak."""
    flops = deployment.gpu.tflops_16 * 1e12 * 0.5 * deployment.tp
    bandwidth = deployment.gpu.bandwidth_tb_s * 1e12 * 0.7 * deployment.tp
    weights, operations = deployment.weight_bytes, 2 * deployment.model.parameters
    launch = 2e-3
    prefill = launch + np.maximum(weights / bandwidth, operations * PREFILL_TOKENS / flops)
    kv = BATCHES[:, None] * CONTEXTS * deployment.kv_bytes_per_token * deployment.tp
    decode = launch + np.maximum((weights + kv) / bandwidth, (operations * BATCHES / flops)[:, None])
    return prefill, decode


def steps_of(deployments: list[Deployment]) -> StepTimes:
    """Stack the roofline profiles of `deployments`."""
    pairs = [roofline(deployment) for deployment in deployments]
    return StepTimes(
        PREFILL_TOKENS, np.stack([p for p, _ in pairs]), BATCHES, CONTEXTS, np.stack([d for _, d in pairs])
    )


@pytest.fixture
def deployments() -> list[Deployment]:
    """Three sizes of hardware for Llama-2-13B."""
    model = Model.named("llama-2-13b")
    kinds = [("BF16", "a100", 1), ("BF16", "h100", 2), ("W4A16", "l40s", 1)]
    return [Deployment(model, Quantization.parse(q), Gpu.named(gpu), tp) for q, gpu, tp in kinds]


@pytest.fixture
def steps(deployments: list[Deployment]) -> StepTimes:
    """Their roofline step times."""
    return steps_of(deployments)
