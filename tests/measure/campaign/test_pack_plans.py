"""The plans of the packs that this machine's engines measure."""

from __future__ import annotations

from importlib import resources

import pytest

from qplan.measure.campaign.estimate import Estimate
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


@pytest.mark.parametrize(
    ("name", "points", "most_min"),
    [
        ("h200-measured", 96, 60),
        ("h200-measured-repeats", 24, 20),
        ("h200-measured-large", 40, 30),
        ("h200-measured-fp8", 40, 30),
    ],
)
def test_a_plan_for_a_lent_gpu_refuses_nothing_and_says_how_long_it_takes(
    name: str, points: int, most_min: int
) -> None:
    with resources.as_file(resources.files("qplan.profiles.packs").joinpath(f"{name}.yaml")) as path:
        plan, _ = read_plan(path)
    grid = make_grid(plan)
    assert not grid.refused
    assert len(grid.points) == points
    assert (plan.duration_s or 0) - plan.warm_up_s >= 20  # steady: the counter ticks every 0.1 s
    total_s = Estimate(plan).total_s(grid.blocks, dict.fromkeys((point.key for point in grid.points), True))
    assert total_s < 60 * most_min
