"""What keeps an inventory from carrying a demand, in words and flags."""

from __future__ import annotations

import math

from qplan.core.errors import InfeasibleError
from qplan.solvers.capacity.ask import CapacityAsk
from qplan.solvers.capacity.diagnose import diagnose
from qplan.solvers.capacity.problem import CapacityProblem


def inventory_obstacle(ask: CapacityAsk, problem: CapacityProblem, solver: str) -> InfeasibleError:
    """Say what demand the inventory of an infeasible `problem` carries, and which GPUs would do."""
    found = diagnose(problem, backend=solver)
    changes = []
    reason = f"the inventory ({_inventory(ask, {})}) cannot carry {ask.rate_qps:g} requests/s"
    reason += " after the loss of a replica" if ask.spare else ""
    rate = _round_down((found.demand_scale or 0.0) * ask.rate_qps)
    if rate > 0:
        reason += f"; it carries {rate:g}"
        changes.append(f"--qps {rate:g}")
    for index, extra in sorted(found.extra_of_one_type.items(), key=lambda pair: pair[1]):
        more = {problem.gpu_types[index]: problem.inventory[index] + extra}
        changes.append(f"--gpus {_inventory(ask, more)}")
    if not found.extra_of_one_type and found.extra_gpus is not None:
        totals = zip(problem.gpu_types, problem.inventory + found.extra_gpus, strict=True)
        changes.append(f"--gpus {_inventory(ask, dict(totals))}")
    if found.feasible_without_spare:
        changes.append("--spare 0")
    return InfeasibleError(reason, constraint="inventory", nearest=changes)


def _inventory(ask: CapacityAsk, instead: dict[str, float]) -> str:
    counts = {**(ask.inventory or {}), **instead}
    return ",".join(name if math.isinf(count) else f"{name}={count:.0f}" for name, count in counts.items())


def _round_down(rate: float) -> float:
    """Round down to three digits, after a margin of two thousandths for the accuracy of the diagnosis."""
    if rate < 1e-6:
        return 0.0
    digit = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return float(f"{math.floor(rate * 0.998 / digit) * digit:.3g}")
