"""How many replicas of which deployment, for a given demand: the capacity solver, on plain arrays."""

from qplan.solvers.capacity.diagnose import Diagnosis, diagnose
from qplan.solvers.capacity.explain import Explanation, RunnerUp, explain
from qplan.solvers.capacity.prices import ShadowPrices, shadow_prices
from qplan.solvers.capacity.problem import CapacityProblem, CapacityResult, Objective
from qplan.solvers.capacity.solve import solve_capacity

__all__ = [
    "CapacityProblem",
    "CapacityResult",
    "Diagnosis",
    "Explanation",
    "Objective",
    "RunnerUp",
    "ShadowPrices",
    "diagnose",
    "explain",
    "shadow_prices",
    "solve_capacity",
]
