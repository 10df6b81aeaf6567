"""Prices: what demand and GPUs are worth, from the dual of the capacity program's linear relaxation.

The relaxation ``min c @ n`` over ``sum_d x[k, d] = 1``, ``sum_k load[k, d] x[k, d] <= n[d]`` and the inventory has
the dual ``max sum_k value[k] - inventory @ rent`` over ``value[k] <= load[k, d] price[d]`` for eligible pairs and
``price[d] <= c[d] + gpus[d] rent[g]``, all at least 0. It is solved as a program of its own, so that any backend
can tell prices. The same pairs of rows, with prices that sum to 1 instead, find the fleet's bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InfeasibleError
from qplan.solvers.backends import MatrixProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qplan.solvers.backends import SolverBackend
    from qplan.solvers.capacity.problem import CapacityProblem

_TIME_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class ShadowPrices:
    """What a little more demand would cost, and a little more inventory save.

    They hold for the linear relaxation, in which replicas come in fractions, and without the spare: a sense of
    scale, not a quote. Where the relaxation has several optimal duals, one of them.

    Attributes
    ----------
    per_qps : ndarray of shape (K,)
        Objective units ($/h or GPUs) per additional request per second of each class.
    per_gpu : ndarray of shape (G,)
        Objective units saved per additional GPU of each type; 0 where the inventory does not bind.
    excess : ndarray of shape (D,)
        What a fleet's objective is at least above `relaxation` for each of its replicas.
    relaxation
        Objective of the relaxation: no fleet, whole or fractional, undercuts it.
    """

    per_qps: NDArray[np.float64]
    per_gpu: NDArray[np.float64]
    excess: NDArray[np.float64]
    relaxation: float


def shadow_prices(problem: CapacityProblem, backend: SolverBackend) -> ShadowPrices:
    """Return the shadow prices of demand and inventory.

    Raises
    ------
    InfeasibleError
        If not even fractional replicas carry the demand.
    """
    kept = np.flatnonzero((problem.capacity_qps > 0).any(0))
    matrix = _values_and_prices(problem.load[:, kept])
    n_classes, n_kept = len(problem.classes), len(kept)
    limited = np.flatnonzero(np.isfinite(problem.inventory))
    rent = n_classes + n_kept + np.arange(len(limited))
    matrix = matrix.with_columns([f"rent {problem.gpu_types[g]}" for g in limited])
    rent_of = {int(g): int(column) for g, column in zip(limited, rent, strict=True)}
    for i, d in enumerate(kept):
        columns, values = [n_classes + i], [1.0]
        g = int(problem.gpu_type[d])
        if g in rent_of:
            columns.append(rent_of[g])
            values.append(-float(problem.gpus[d]))
        matrix = matrix.with_row(columns, values, upper=float(problem.price[d]))
    matrix = matrix.with_cost(
        np.concatenate([np.arange(n_classes), rent]),
        np.concatenate([-np.ones(n_classes), problem.inventory[limited]]),
    )
    answer = backend.solve(matrix, time_limit_s=_TIME_LIMIT_S, mip_gap=0.0)
    if answer.values is None or answer.objective is None:
        raise InfeasibleError("the inventory does not carry the demand", constraint="inventory")
    per_gpu = np.zeros(len(problem.gpu_types))
    per_gpu[limited] = answer.values[rent]
    worth = np.zeros(len(problem.deployments))
    worth[kept] = answer.values[n_classes : n_classes + n_kept]
    return ShadowPrices(
        per_qps=answer.values[:n_classes] / problem.rate_qps,
        per_gpu=per_gpu,
        excess=problem.price + problem.gpus * per_gpu[problem.gpu_type] - worth,
        relaxation=-answer.objective,
    )


def bottleneck(load: NDArray[np.float64], replicas: NDArray[np.float64], backend: SolverBackend) -> NDArray[np.float64]:
    """Return the replica prices under which the demand is worth most beyond the replicas that there are.

    By duality, ``demand_worth(load, prices) - replicas @ prices`` is the number of replicas that every
    deployment lacks at the best assignment: above 0, the replicas do not carry the demand.

    Parameters
    ----------
    load : ndarray of shape (K, D)
        Replicas that each class keeps busy on each deployment; 0 where not eligible.
    replicas : ndarray of shape (D,)

    Returns
    -------
    ndarray of shape (D,)
        At least 0; they sum to at most 1.
    """
    n_classes, n_deployments = load.shape
    prices = n_classes + np.arange(n_deployments)
    matrix = _values_and_prices(load).with_row(prices, 1.0, upper=1.0)
    matrix = matrix.with_cost(np.arange(n_classes + n_deployments), np.concatenate([-np.ones(n_classes), replicas]))
    answer = backend.solve(matrix, time_limit_s=_TIME_LIMIT_S, mip_gap=0.0)
    assert answer.values is not None  # all prices zero are feasible, and the sum bounds them
    return np.asarray(np.maximum(answer.values[prices], 0.0))


def demand_worth(load: NDArray[np.float64], prices: NDArray[np.float64]) -> float:
    """Return what carrying all classes takes at least, if a busy replica of each deployment costs its price."""
    return float(np.where(load > 0, load * prices, np.inf).min(1).sum())


def _values_and_prices(load: NDArray[np.float64]) -> MatrixProgram:
    """Columns ``value[k]``, then ``price[d]``; a row ``value[k] - load[k, d] price[d] <= 0`` for each pair."""
    n_classes, n_deployments = load.shape
    pair_class, pair_deployment = np.nonzero(load)
    n_pairs = len(pair_class)
    empty, rows = np.empty(0), np.arange(n_pairs)
    names = [f"value {k}" for k in range(n_classes)] + [f"price {d}" for d in range(n_deployments)]
    return (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns(names)
        .with_rows(
            np.concatenate([rows, rows]),
            np.concatenate([pair_class, n_classes + pair_deployment]),
            np.concatenate([np.ones(n_pairs), -load[pair_class, pair_deployment]]),
            np.full(n_pairs, -np.inf),
            np.zeros(n_pairs),
        )
    )
