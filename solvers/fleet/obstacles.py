"""What keeps a demand from having a fleet, in words and in keys of the demand file."""

from __future__ import annotations

import numpy as np

from qplan.core.demand import MEASURES
from qplan.core.errors import InfeasibleError
from qplan.solvers.fleet.asking import Asked
from qplan.solvers.fleet.diagnose import Diagnosis, diagnose


def obstacle(asked: Asked, solver: str) -> InfeasibleError:
    """Say which classes and periods have no fleet, and the nearest changes that give them one."""
    found = diagnose(asked.problem, backend=solver)
    changes = _changes(asked, found)
    reason = f"no fleet carries {_whom(asked, found)} within {_limits(asked)}"
    return InfeasibleError(reason, constraint=_constraint(found), nearest=changes)


def _whom(asked: Asked, found: Diagnosis) -> str:
    if found.unserved:
        names = dict.fromkeys(asked.problem.classes[asked.problem.bucket_class[b]] for b in found.unserved)
        return f"{', '.join(names)} at all"
    who = ", ".join(asked.problem.classes[k] for k in found.classes) or "all classes together"
    if not found.periods or len(found.periods) == len(asked.demand.hours):
        return who
    hours = ", ".join(f"{sum(asked.demand.hours[:h]):g}h" for h in found.periods)
    return f"{who} in the periods from {hours}"


def _limits(asked: Asked) -> str:
    demand = asked.demand
    limits = []
    if any(np.isfinite(pool.count) for pool in demand.pools):
        limits.append("the GPUs to be had (" + ", ".join(f"{p.count:g} x {p.name}" for p in demand.pools) + ")")
    if np.isfinite(demand.power_cap_w):
        limits.append(f"a power cap of {demand.power_cap_w / 1000:g} kW")
    limits += [f"{name} of at most {limit:g}" for name, limit in demand.at_most.items() if name != "quality"]
    if "quality" in demand.at_most or any(one.mean_quality for one in demand.classes):
        limits.append("the floors on mean quality")
    if demand.spare:
        limits.append(f"the loss of any {demand.spare} replicas")
    return " and ".join(limits) or "what the profiles hold"


def _constraint(found: Diagnosis) -> str:
    if found.unserved:
        return "slo"
    if found.extra_gpus or found.extra_of_all is not None:
        return "inventory"
    if found.power_w is not None:
        return "power"
    if found.mean_quality is not None:
        return "quality"
    return "limits"


def _changes(asked: Asked, found: Diagnosis) -> list[str]:
    demand, changes = asked.demand, []
    for g, extra in sorted((found.extra_gpus or {}).items(), key=lambda pair: pair[1]):
        pool = asked.pools[g]
        changes.append(f"{pool.name}: count {pool.count + extra:g} (+{extra})")
    if found.extra_of_all is not None and not found.extra_gpus:
        more = [f"{pool.name} +{n}" for pool, n in zip(asked.pools, found.extra_of_all.tolist(), strict=True) if n]
        changes.append("more GPUs: " + ", ".join(more))
    if found.power_w is not None:
        changes.append(f"power_cap: {np.ceil(found.power_w * 1.001) / 1000:.4g}kW")
    if found.mean_quality is not None:
        floors = zip(demand.classes, found.mean_quality.tolist(), strict=True)
        changes += [
            f"{one.name}: mean_quality {np.floor(floor * 1000) / 10:g}%" for one, floor in floors if one.mean_quality
        ]
    for name, limit in (found.at_most or {}).items():
        changes.append(
            f"at_least: {{quality: {np.floor(limit * 1000) / 10:g}%}}"
            if name == "quality"
            else f"at_most: {{{name}: {limit * 1.001:.4g}}} {MEASURES[name]}"
        )
    if found.without_spare:
        changes.append("spare: 0")
    return changes
