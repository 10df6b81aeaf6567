"""What tests of several layers share: a self-made profile, close to no real engine, PostgreSQL, and a Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import settings

from qplan.core import Deployment, Gpu, Model, Quantization
from qplan.models.steptimes import StepTimes

# How long an example takes is the machine's matter, and that of what else runs on it.
settings.register_profile("qplan", deadline=None)
settings.load_profile("qplan")

PREFILL_TOKENS = np.array([16, 64, 256, 1024, 4096, 16384], dtype=float)
BATCHES = np.array([1, 4, 16, 64, 256, 512], dtype=float)
CONTEXTS = np.array([64, 512, 2048, 8192], dtype=float)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give workers the files with the most slow tests first, so that no such file is left to one of them at the end."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh database on the server that QPLAN_TEST_POSTGRES names."""
    server = os.environ.get("QPLAN_TEST_POSTGRES")
    if not server:
        pytest.skip("QPLAN_TEST_POSTGRES names no server; .ci/run starts one")
    name = f"qplan_test_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()


@pytest.fixture
def on_ray(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Run a script that starts a Ray cluster, in a process of its own, which ends it.

    The script is given the test's folder and one for Ray; its last line is JSON, which is returned.
    """
    pytest.importorskip("ray", reason="Ray is not installed")

    def run(script: str) -> dict[str, Any]:
        (tmp_path / "script.py").write_text(script)
        short = tmp_path_factory.mktemp("r")  # Ray's sockets have a limit of 107 characters
        done = subprocess.run(
            [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(short)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run
