from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qplan.core import Deployment, Gpu, Model, Quantization
from qplan.models.calibration import ClosedLoad, ClosedLoopPrior
from qplan.models.profiled import Profiled
from qplan.models.steptimes import StepTimes

TPS = (1, 2, 4)


@pytest.fixture(scope="session")
def profile() -> Profiled:
    """Llama-3.1-8B on an H100 with TP 1, 2 and 4; step times linear in what an iteration holds."""
    gpu, model, quantization = Gpu.named("h100"), Model.named("llama-3.1-8b"), Quantization.parse("BF16")
    tokens, batches, contexts = np.array([128.0, 8192.0]), np.array([1.0, 256.0]), np.array([128.0, 16384.0])
    speed = np.array([1.0, 1.7, 2.8])[:, None]
    grid = 6e-3 + 3e-5 * batches[:, None] + 4e-9 * batches[:, None] * contexts
    steps = StepTimes(tokens, (2e-3 + 2e-5 * tokens) / speed, batches, contexts, grid / speed[..., None])
    deployments = tuple(Deployment(model, quantization, gpu, tp) for tp in TPS)
    return Profiled(deployments, steps, ("made up",) * len(deployments))


@pytest.fixture(scope="session")
def prior(profile: Profiled) -> ClosedLoopPrior:
    return ClosedLoopPrior(profile)


@pytest.fixture(scope="session")
def loads(profile: Profiled) -> Callable[[int], list[ClosedLoad]]:
    """Make the closed loops of a sweep on the deployment at an index."""

    def make(index: int) -> list[ClosedLoad]:
        return [
            ClosedLoad(profile.deployments[index], inputs, outputs, concurrency)
            for inputs in (512, 4096)
            for outputs in (64, 1024)
            for concurrency in (1, 4, 16, 64)
        ]

    return make
