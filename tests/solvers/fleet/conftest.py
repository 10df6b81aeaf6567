"""A small demand over the shipped pack: two quantizations on two types of GPU, three periods; and a second opinion."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from qplan.core.demand import Demand
from qplan.profiles.demands import demand_of
from qplan.profiles.yamlfile import read_yaml
from qplan.solvers.fleet.planning import FleetAnswer, plan_fleet

SMALL = """\
classes:
  - name: chat
    rate: 60qps
    demand: [1, 3, 2]
    lengths: chat
    slo: [p90:ttft=1s, p90:tpot=50ms]
    models: [llama-3.1-8b]
    quality: 97%
    quantizations: [BF16, W8A8KV8-FP]
gpus:
  - {gpu: h100, count: 6, price: 4}
  - {gpu: l40s, count: 8, price: 1.5}
energy: {price: [0.1, 0.2, 0.1], carbon: 400}
"""


def small(text: str = SMALL) -> Demand:
    return demand_of(read_yaml(text, "small.yaml"), Path(), "small")


@pytest.fixture(scope="session")
def small_demand() -> Demand:
    return small()


@pytest.fixture(scope="session")
def small_answer(small_demand: Demand) -> FleetAnswer:
    return plan_fleet(small_demand)


@pytest.fixture(scope="session")
def reference() -> Any:
    """The fleet question written down again, and its random instances: ``fleet_reference.py`` beside this."""
    spec = importlib.util.spec_from_file_location("fleet_reference", Path(__file__).with_name("fleet_reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
