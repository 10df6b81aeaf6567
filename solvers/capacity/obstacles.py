"""Why an inventory cannot carry a demand, and how far it is from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qplan.core.errors import InfeasibleError
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.problem import CapacityProblem
from qplan.solvers.capacity.solve import solve_capacity

_BISECTIONS = 12  # of a factor of eight on a log scale: to 0.05 %
_LEAST_LOAD = 1e-3  # replicas kept busy: any fleet at all carries this


def inventory_obstacle(ask: CapacityAsk, problem: CapacityProblem) -> InfeasibleError:
    """Say what demand the inventory of an infeasible `problem` carries, and which GPUs would do."""
    share = carried_share(problem)
    more = [f"--gpus {_inventory(ask, needed)}" for needed in sufficient_inventories(problem)]
    reason = f"the inventory ({_inventory(ask, {})}) cannot carry {ask.rate_qps:g} requests/s"
    if ask.spare:
        reason += " after the loss of a replica"
    if share == 0:
        return InfeasibleError(f"{reason}, nor any other rate", constraint="inventory", nearest=more)
    rate = _round_down(share * ask.rate_qps)
    return InfeasibleError(f"{reason}; it carries {rate:g}", constraint="inventory", nearest=(f"--qps {rate:g}", *more))


def carried_share(problem: CapacityProblem) -> float:
    """Return the largest share of the demand, all classes scaled alike, that the inventory carries; 0 if none."""

    def carries(share: float) -> bool:
        scaled = replace(problem, rate_qps=problem.rate_qps * share, objective="gpus")
        return solve_capacity(scaled).status in ("optimal", "feasible")

    least = _LEAST_LOAD / float(problem.load.max())
    if not carries(least):
        return 0.0
    high = 1.0
    while not carries(high / 8):  # few inventories are far too small
        high /= 8
    low = high / 8
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low


def sufficient_inventories(problem: CapacityProblem) -> list[dict[str, int]]:
    """Return, by GPU type, how many of it would do beside the rest of the inventory; the fewest extra GPUs first."""
    found: list[tuple[int, dict[str, int]]] = []
    for index, name in enumerate(problem.gpu_types):
        inventory = np.array(problem.inventory)
        inventory[index] = np.inf
        result = solve_capacity(replace(problem, inventory=inventory, objective="gpus"))
        if result.status in ("optimal", "feasible"):
            needed = int(problem.gpus_used(result.counts)[index])
            found.append((needed - int(problem.inventory[index]), {name: needed}))
    return [needed for _, needed in sorted(found, key=lambda pair: pair[0])]


def _inventory(ask: CapacityAsk, instead: dict[str, int]) -> str:
    return ",".join(
        name if np.isinf(count) else f"{name}={count:.0f}"
        for name, count in {**(ask.inventory or {}), **instead}.items()
    )


def _round_down(rate: float) -> float:
    """Round down to three digits, so that the printed rate is carried."""
    digit = 10.0 ** (np.floor(np.log10(rate)) - 2)
    return float(f"{np.floor(rate / digit) * digit:.3g}")
