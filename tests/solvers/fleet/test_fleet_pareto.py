from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.solvers.fleet.pareto import pareto
from qplan.solvers.fleet.solve import solve_fleet

LOW = {"cost": 1, "energy": 1, "carbon": 1, "gpus": 1, "quality": -1}


@pytest.mark.parametrize("measures", [("cost", "energy"), ("quality", "energy"), ("energy", "cost", "quality")])
def test_the_front_starts_at_the_ends_and_none_is_dominated(reference: Any, measures: tuple[str, ...]) -> None:
    fronts = []
    for seed in (4, 2):
        problem = replace(reference.make_fleet(seed), spare=0)
        front = pareto(problem, measures, 4, mip_gap=1e-6)
        if not front:
            assert solve_fleet(problem).status == "infeasible"
            continue
        fronts.append(len(front))
        points = [[LOW[name] * one.measures[name] for name in measures] for one in front]
        for a in points:
            assert not any(b != a and all(x <= y + 1e-9 for x, y in zip(b, a, strict=True)) for b in points)
        for name in measures:
            if name != "quality":
                least = solve_fleet(replace(problem, objective=((name, 1.0),), then=()), mip_gap=0.0).objective
                assert min(one.measures[name] for one in front) == pytest.approx(least, rel=1e-5)
    assert max(fronts) >= 3


def test_every_point_is_the_least_under_what_it_reaches(reference: Any) -> None:
    """No fleet is cheaper that takes no more energy."""
    problem = replace(reference.make_fleet(4), spare=0)
    for one in pareto(problem, ("cost", "energy"), 3, mip_gap=1e-6):
        limit = {**problem.at_most, "energy": one.measures["energy"] * (1 + 1e-7)}
        again = solve_fleet(replace(problem, objective=(("cost", 1.0),), then=(), at_most=limit), mip_gap=0.0)
        assert again.objective == pytest.approx(one.measures["cost"], rel=1e-5)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (("cost", "enrgy"), r"pareto: unknown 'enrgy'; expected cost, .*did you mean 'energy'\?"),
        (("cost",), r"pareto: cost; expected two or more different measures"),
        (("cost", "cost"), r"pareto: cost, cost; expected two or more different measures"),
    ],
)
def test_bad_measures(reference: Any, measures: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pareto(reference.make_fleet(0), measures)
