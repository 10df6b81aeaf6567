"""Timed iterations of a made-up engine whose step times are known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.steps.points import StepPoints
from qplan.models.steps.roofline import terms
from qplan.models.steptimes import Floats

PROMPTS = np.array([16, 64, 256, 1024, 4096], dtype=float)
BATCHES = np.array([1, 4, 16, 64, 256], dtype=float)
CONTEXTS = np.array([64, 512, 4096], dtype=float)


def deployment(
    model: str = "llama-2-13b", quantization: str = "BF16", gpu: str = "a100", tp: int = 1, version: str = "1"
) -> Deployment:
    return Deployment(Model.named(model), Quantization.parse(quantization), Gpu.named(gpu), tp, "made-up", version)


def true_s(one: Deployment, prefill: Floats, batch: Floats, kv: Floats, prompts: Floats | float = 1.0) -> Floats:
    """Take 80 % of bandwidth, 60 % of the tensor cores and half of the interconnect."""
    work = terms(one, prefill, batch, kv, prompts)
    return work.memory_s / 0.8 + work.compute_s / 0.6 + 2 * work.allreduce_s + 2 * work.launch_s


def timed(deployments: Sequence[Deployment], noise: float = 0.0) -> StepPoints:
    """Time prefill and decode iterations of `deployments` on a grid."""
    b, c = (axis.ravel() for axis in np.meshgrid(BATCHES, CONTEXTS, indexing="ij"))
    nothing = np.zeros_like(PROMPTS)
    prefill, batch = np.concatenate([PROMPTS, np.zeros(len(b))]), np.concatenate([nothing, b])
    kv = np.concatenate([nothing, b * c])
    times = np.concatenate([true_s(one, prefill, batch, kv) for one in deployments])
    times *= np.exp(noise * np.random.default_rng(0).standard_normal(len(times)))
    n = len(deployments)
    return StepPoints(
        tuple(deployments),
        np.repeat(np.arange(n), len(prefill)),
        np.tile(prefill, n),
        np.tile(batch, n),
        np.tile(kv, n),
        np.ones(n * len(prefill)),
        times,
    )
