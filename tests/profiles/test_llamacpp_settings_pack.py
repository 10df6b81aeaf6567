"""What the shipped pack ``llamacpp-settings`` claims to hold: its plan, all of it, twice."""

from __future__ import annotations

from collections import defaultdict
from importlib import resources
from statistics import median

from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.profiles.packs import read_pack


def test_every_combination_of_the_plan_was_searched_twice_and_every_format_judged() -> None:
    with resources.as_file(resources.files("qplan.profiles.packs").joinpath("llamacpp-settings.yaml")) as path:
        plan, _ = read_plan(path)
    grid = make_grid(plan)
    assert not grid.refused
    planned = {(p.target.quantization, p.target.columns()["settings"], p.workload) for p in grid.points}
    rows = [row for row in read_pack("llamacpp-settings").table.to_pylist() if row["status"] == "ok"]
    searched: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for row in rows:
        if row["phase"] == "saturation":
            assert 0 < row["saturation_low_qps"] <= row["saturation_qps"] <= row["saturation_high_qps"]
            searched[row["quantization"], row["settings"], row["workload"]].add(row["repeat"])
    assert searched == {key: {0, 1} for key in planned}
    judged = {row["quantization"] for row in rows if row["metric"] == "perplexity"}
    assert judged == {quantization for quantization, _, _ in planned}


def test_a_second_thread_and_a_greater_batch_serve_more_in_every_format() -> None:
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_pack("llamacpp-settings").table.to_pylist():
        if row["phase"] == "saturation":
            rates[row["quantization"], row["settings"]].append(row["saturation_qps"])
    formats = {quantization for quantization, _ in rates}
    ratios = [
        median(rates[one, '{"batch-size": 64, "threads": 2}']) / median(rates[one, '{"batch-size": 2, "threads": 1}'])
        for one in formats
    ]
    assert min(ratios) > 1.4
    assert median(ratios) > 2
