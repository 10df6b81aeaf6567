"""A small fleet whose iterations take made-up times and watts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.iterations import IterationGrid
from qplan.models.simulator.fleetfile import Fleet, FleetFile, Group
from qplan.models.simulator.replica import Replica
from qplan.profiles.demands import read_demand
from qplan.solvers.routing.fleet import FleetModel, model_fleet

DEMAND = """
name: two-classes
classes:
  - name: chat
    rate: 6qps
    lengths: chat
    slo: [p90:ttft=1s, p90:tpot=80ms]
    models: [llama-3.1-8b]
    quality: 90%
    mean_quality: {floor}
  - name: nightly
    rate: 2qps
    lengths: isl=900,osl=40
    models: [llama-3.1-8b]
    quality: 90%
start: {{time: 20s}}
"""


def replica_of(deployment: Deployment, slowness: float, idle_w: float, busy_w: float) -> Replica:
    """Return a replica that takes 10 ms, times its slowness, to read its weights, and more for what it serves."""
    prefill, batches, contexts = np.array([0.0, 512, 4096]), np.array([0.0, 1, 32, 64]), np.array([0.0, 2048])
    p, n, c = np.meshgrid(prefill, batches, contexts, indexing="ij")
    time_s = slowness * (1e-2 + 1e-4 * p + 2e-4 * n + 2e-7 * n * c) * ((p > 0) | (n > 0))
    power_w = np.full(time_s.shape, busy_w)
    return Replica.of(deployment, IterationGrid(prefill, batches, contexts, time_s), power_w=power_w, idle_w=idle_w)


def group_of(quantization: str, gpu: str, count: int) -> Group:
    deployment = Deployment(Model.named("llama-3.1-8b"), Quantization.parse(quantization), Gpu.named(gpu))
    return Group(deployment, count, 1.0, "both", None, {}, "replicas[0]")


@pytest.fixture(scope="session")
def file() -> FleetFile:
    """Two slow replicas at 16 bits, and two fast ones at 8 bits."""
    return FleetFile((group_of("BF16", "a100", 2), group_of("W8A8-FP", "h100", 2)), None)


@pytest.fixture(scope="session")
def fleet(file: FleetFile) -> Fleet:
    """The replicas of `file`."""
    slow = replica_of(file.groups[0].deployment, 2.0, 50.0, 400.0)
    fast = replica_of(file.groups[1].deployment, 1.0, 75.0, 350.0)
    return Fleet((slow, slow, fast, fast), (), None, ("made up",), (), "")


@pytest.fixture(scope="session")
def modelled(file: FleetFile, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FleetModel]:
    """Asks the models about the fleet, with a floor on the mean quality of chats."""
    made: dict[tuple[str, bool], FleetModel] = {}

    def model(floor: str = "90%", *, sleep: bool = True) -> FleetModel:
        if (floor, sleep) not in made:
            path: Path = tmp_path_factory.mktemp("demand") / "demand.yaml"
            path.write_text(DEMAND.format(floor=floor), encoding="utf-8")
            made[floor, sleep] = model_fleet(file, fleet, read_demand(path), sleep=sleep)
        return made[floor, sleep]

    return model
