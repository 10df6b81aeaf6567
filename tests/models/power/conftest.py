"""Deployments of the shipped pack with their step times, and a shorthand to load them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qplan.core import Workload
from qplan.models.power.energy import Energy, energy
from qplan.models.profiled import COLUMNS, Profiled, profiled
from qplan.models.sharing import SharingModel
from qplan.profiles.packs import read_pack

Load = Callable[[str, float], Energy]


@pytest.fixture(scope="session")
def pack() -> Profiled:
    found = profiled(read_pack("trtllm-composed", models={"llama-3.1-8b"}, columns=COLUMNS).table, "the shipped pack")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def chat() -> Workload:
    return Workload.of("chat", "chat", [(240, 480, 1.0)], "a test")


@pytest.fixture(scope="session")
def load(pack: Profiled, chat: Workload) -> Load:
    """Load one replica of a deployment, by its name, with chat at a rate in requests/s."""
    names = {deployment.name: i for i, deployment in enumerate(pack.deployments)}

    def loaded(name: str, rate_qps: float) -> Energy:
        at = np.array([names[name]])
        deployments, steps, rate = [pack.deployments[names[name]]], pack.steps.take(at), np.array([rate_qps])
        return energy(deployments, steps, chat, rate, SharingModel.of(deployments, steps).at(chat, rate))

    return loaded


@pytest.fixture(scope="session")
def stable_qps(pack: Profiled, chat: Workload) -> Callable[[str], float]:
    names = {deployment.name: i for i, deployment in enumerate(pack.deployments)}
    rates = SharingModel.of(pack.deployments, pack.steps).saturation_qps(chat, [])
    return lambda name: float(rates[names[name]])
