"""The plans of the packs that this machine's engines measure."""

from __future__ import annotations

from importlib import resources

import pytest

from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan


@pytest.mark.parametrize(("name", "deployments"), [("llamacpp-cpu", 16), ("vllm-cpu", 6)])
def test_a_pack_names_every_combination_that_it_claims(name: str, deployments: int) -> None:
    with resources.as_file(resources.files("qplan.profiles.packs").joinpath(f"{name}.yaml")) as path:
        plan, _ = read_plan(path)
    grid = make_grid(plan)
    served = {(block.target.quantization, block.target.engine) for block in grid.blocks}
    assert plan.name == name
    assert len(served) + len(grid.refused) == deployments
    assert sum(load.share is not None for load in plan.loads) >= 5
    assert len(plan.traffic) == 2
