from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qplan.solvers.fleet.diagnose import diagnose
from qplan.solvers.fleet.solve import solve_fleet


def test_each_change_it_names_is_enough_and_the_least(reference: Any) -> None:
    seen = {"gpus": 0, "power": 0, "quality": 0, "at_most": 0, "spare": 0, "unserved": 0}
    for seed in (17, 22, 26, 27, 34, 36, 43):
        problem = reference.make_fleet(seed)
        assert solve_fleet(problem).status == "infeasible"
        found = diagnose(problem)
        if found.unserved:
            seen["unserved"] += 1
            assert not problem.eligible[list(found.unserved)].any()
            continue
        for g, extra in (found.extra_gpus or {}).items():
            seen["gpus"] += 1
            assert status(problem, inventory=more(problem, g, extra)) == "optimal"
            fewer = more(problem, g, extra - int(problem.node_gpus[g]))
            assert status(problem, inventory=fewer) == "infeasible"
        if found.power_w is not None:
            seen["power"] += 1
            assert found.power_w > problem.power_cap_w
            assert status(problem, power_cap_w=found.power_w * 1.002) == "optimal"
            assert status(problem, power_cap_w=found.power_w * 0.995) == "infeasible"
        if found.mean_quality is not None:
            seen["quality"] += 1
            assert status(problem, mean_quality=np.maximum(found.mean_quality - 1e-4, 0)) == "optimal"
        for name, limit in (found.at_most or {}).items():
            seen["at_most"] += 1
            slack = -1e-4 if name == "quality" else 2e-3 * limit
            assert status(problem, at_most={**problem.at_most, name: limit + slack}) == "optimal"
        if found.without_spare:
            seen["spare"] += 1
            assert status(problem, spare=0) == "optimal"
        for h in found.periods:
            assert solve_fleet(problem.at(h)).status == "infeasible"
    assert min(seen.values()) >= 1, seen


def status(problem: Any, **change: Any) -> str:
    return solve_fleet(replace(problem, then=(), **change)).status


def more(problem: Any, g: int, gpus: int) -> Any:
    return problem.inventory + gpus * (np.arange(len(problem.pools)) == g)
