from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qplan.measure.campaign.grid import Grid, make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.measure.campaign.points import Point


@pytest.fixture
def grid_of(write_plan: Callable[..., Path]) -> Callable[..., Grid]:
    """Return the grid of a plan of the scripted engine."""

    def make(**parts: Any) -> Grid:
        return make_grid(read_plan(write_plan(**parts))[0])

    return make


def test_the_grid_is_the_product_of_the_lists(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(quantizations="[BF16, Q8_0, Q4_0-KV8-INT]", loads="[1, 2]", repeats=2)
    assert len(grid.points) == 3 * 2 * 2
    assert len({point.key for point in grid.points}) == len(grid.points)


def test_repeats_are_outermost_and_every_other_one_runs_backwards(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(quantizations="[Q8_0, BF16, Q4_0]", repeats=2)
    order = [(block.target.quantization, block.points[0].repeat) for block in grid.blocks]
    assert order == [("BF16", 0), ("Q8_0", 0), ("Q4_0", 0), ("Q4_0", 1), ("Q8_0", 1), ("BF16", 1)]


def test_grouped_repeats_share_a_start(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(quantizations="[Q8_0, BF16]", repeats=3, order="grouped")
    assert [len(block.points) for block in grid.blocks] == [3, 3]


def test_the_search_comes_before_the_shares_that_wait_for_it(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(loads="[50%, 3, find saturation]", repeats=2)
    assert [point.kind for point in grid.blocks[0].points] == ["saturation", "load", "load"]
    assert grid.blocks[1].after == (0,)


def test_compared_quality_waits_for_the_baseline_and_is_judged_once(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(quantizations="[Q8_0, BF16]", repeats=2, more="quality: ['perplexity:english']")
    judged = [(point.target.quantization, point.repeat) for point in grid.points if point.kind == "quality"]
    assert judged == [("BF16", 0), ("Q8_0", 0)]
    baseline, quantized = grid.blocks[0], grid.blocks[1]
    assert (baseline.target.quantization, baseline.after) == ("BF16", ())
    assert (quantized.target.quantization, quantized.after) == ("Q8_0", (0,))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"tp": "[1, 2]"}, "tensor parallelism needs GPUs"),
        ({"gpu": "h100", "devices": "devices: [0, 1]", "tp": "[1, 4]"}, "needs 4 GPUs; the plan has 2"),
        ({"gpu": "a100", "quantizations": "[BF16, W8A8-FP]"}, "W8A8-FP needs FP8 tensor cores"),
        ({"settings": "{mute: on}"}, "it was told to"),
        ({"more": "seed: 1", "loads": "[1]", "quantizations": "[BF16]"}, None),
    ],
)
def test_what_cannot_be_measured_is_listed_with_its_reason(
    grid_of: Callable[..., Grid], parts: dict[str, str], reason: str | None
) -> None:
    refused = grid_of(**parts).refused
    assert len(refused) == (0 if reason is None else 1)
    assert reason is None or reason in refused[0].reason


def test_models_of_the_catalogue_are_held_to_the_memory(write_plan: Callable[..., Path]) -> None:
    path = write_plan(gpu="l4", devices="devices: [0]")
    path.write_text(path.read_text().replace("name: tiny", "name: llama-2-70b"))
    (refused,) = make_grid(read_plan(path)[0]).refused
    assert "does not fit" in refused.reason


def test_requests_longer_than_the_context_are_refused(write_plan: Callable[..., Path]) -> None:
    path = write_plan()
    path.write_text(path.read_text().replace('"isl=8,osl=4"', '"isl=8,osl=4", "isl=500,osl=50"'))
    grid = make_grid(read_plan(path)[0])
    assert [refused.what for refused in grid.refused] == ["tiny: isl=500,osl=50"]
    assert len(grid.points) == 1


def test_a_point_is_known_by_what_it_measures_not_by_its_place(grid_of: Callable[..., Grid]) -> None:
    one = grid_of(loads="[1, 2]")
    other = grid_of(loads="[3, 2, 1]", retries=0)
    assert {point.key for point in one.points} < {point.key for point in other.points}
    assert Point.from_json(one.points[0].to_json()) == one.points[0]
