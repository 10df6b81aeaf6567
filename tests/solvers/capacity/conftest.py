from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog

from qplan.solvers.capacity.problem import CapacityProblem

Oracle = Callable[[CapacityProblem], tuple[float, set[tuple[int, ...]]] | None]


@pytest.fixture(scope="session")
def random_problem() -> Callable[[int], CapacityProblem]:
    """Small instances of every kind: classes, inventories, both objectives, with and without a spare."""

    def make(seed: int) -> CapacityProblem:
        rng = np.random.default_rng(seed)
        classes, deployments, types = rng.integers(1, 4), rng.integers(1, 5), rng.integers(1, 3)
        gpu_type = rng.integers(0, types, deployments)
        gpus = 2 ** rng.integers(0, 3, deployments)
        price = rng.choice([0.8, 1.1, 2.21, 3.9], types)
        capacity = gpus * rng.uniform(1.0, 4.0, (classes, deployments)).round(2)
        capacity *= rng.random((classes, deployments)) < 0.85
        return CapacityProblem(
            classes=tuple(f"class{k}" for k in range(classes)),
            deployments=tuple(f"deployment{d}" for d in range(deployments)),
            gpu_types=tuple(f"gpu{g}" for g in range(types)),
            rate_qps=rng.uniform(1.0, 7.0, classes).round(2),
            capacity_qps=capacity,
            gpu_type=gpu_type,
            gpus=gpus,
            cost_per_hour=price[gpu_type] * gpus,
            quality=rng.choice([0.95, 0.98, 1.0], (1, deployments)) * np.ones((classes, 1)),
            inventory=np.where(rng.random(types) < 0.5, np.inf, rng.integers(2, 13, types)),
            objective="cost" if rng.random() < 0.5 else "gpus",
            spare=int(rng.integers(0, 2)),
        )

    return make


@pytest.fixture(scope="session")
def carries() -> Callable[..., bool]:
    """Whether a fleet carries the demand, from the statement of the question and an LP of its own."""
    return _carries


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """The least objective and every fleet that reaches it, by enumeration; None if no fleet carries the demand."""

    def enumerate_fleets(problem: CapacityProblem) -> tuple[float, set[tuple[int, ...]]] | None:
        price = problem.cost_per_hour if problem.objective == "cost" else problem.gpus
        most = []
        for d in range(len(problem.deployments)):
            served = problem.capacity_qps[:, d] > 0
            alone = (problem.rate_qps[served] / problem.capacity_qps[served, d]).sum()
            here = problem.inventory[problem.gpu_type[d]] / problem.gpus[d]
            most.append(range(int(min(np.ceil(alone) + problem.spare, here)) + 1))
        fleets = [
            fleet
            for fleet in product(*most)
            if all(
                sum(n * problem.gpus[d] for d, n in enumerate(fleet) if problem.gpu_type[d] == g) <= stock
                for g, stock in enumerate(problem.inventory)
            )
        ]
        best, reach = np.inf, set()
        for fleet in sorted(fleets, key=lambda fleet: float(np.dot(price, fleet))):
            objective = float(np.dot(price, fleet))
            if objective > best + 1e-9:
                break
            if _carries(problem, np.array(fleet), problem.spare):
                best = min(best, objective)
                reach.add(fleet)
        return (best, reach) if reach else None

    return enumerate_fleets


def _carries(problem: CapacityProblem, fleet: NDArray[np.int64], spare: int) -> bool:
    if spare:
        losses = [fleet - (np.arange(len(fleet)) == d) for d in np.flatnonzero(fleet)]
        return bool(losses) and all(_carries(problem, left, 0) for left in losses)
    if (problem.capacity_qps @ fleet < problem.rate_qps - 1e-6).any():
        return False  # not even alone on the fleet
    if len(problem.classes) == 1:
        return True
    k, d = np.nonzero(problem.capacity_qps)
    served = np.zeros((len(problem.classes), len(k)))  # column j: requests/s of class k[j] on deployment d[j]
    served[k, np.arange(len(k))] = 1
    busy = np.zeros((len(fleet), len(k)))
    busy[d, np.arange(len(k))] = 1 / problem.capacity_qps[k, d]
    return linprog(np.zeros(len(k)), A_ub=busy, b_ub=fleet + 1e-7, A_eq=served, b_eq=problem.rate_qps).status == 0
