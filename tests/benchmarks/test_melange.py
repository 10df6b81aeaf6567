"""Shares of a bucket against Mélange's slices.

Mélange (arXiv 2404.14527, section 5.4) cuts each bucket of request sizes into slices and assigns every slice to one
GPU type: with ``A[i, j]`` 1 where slice i runs on type j, ``B[j]`` GPUs of the type at ``c[j]`` $/h, and ``L[i, j]``
the rate of the slice over the highest throughput of the type for it::

    min sum_j c[j] B[j]    s.t.    sum_j A[i, j] = 1,    sum_i A[i, j] L[i, j] <= B[j],    A binary, B whole

Written here from these equations. Any such assignment is one in shares as well, which therefore never costs more.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from qplan.solvers.backends import MatrixProgram, open_backend
from qplan.solvers.scale.solve import solve_at_scale

Floats = NDArray[np.float64]

SLICES = 8
#: $/h, TFLOP/s and TB/s of L4, A10G, A100 and H100.
PRICE = np.array([0.70, 1.01, 3.67, 7.516])
FLOPS, BANDWIDTH = np.array([121.0, 70.0, 312.0, 990.0]) * 1e12, np.array([0.3, 0.6, 2.0, 3.35]) * 1e12
PARAMETERS = 7e9


def loads(side: int, rate_qps: float, seed: int) -> Floats:
    """GPUs that each of side x side buckets keeps busy on each type alone. Shape (side * side, 4)."""
    rng = np.random.default_rng(seed)
    lengths_in, lengths_out = np.meshgrid(np.geomspace(25, 8000, side), np.geomspace(25, 2000, side), indexing="ij")
    prefill = 2 * PARAMETERS * lengths_in.ravel()[:, None] / (0.5 * FLOPS)
    concurrency = np.clip(4e4 / (lengths_in + lengths_out).ravel()[:, None], 1, 64)
    decode = lengths_out.ravel()[:, None] * 2 * PARAMETERS / (0.7 * BANDWIDTH) / concurrency
    return np.asarray(rate_qps * rng.dirichlet(np.ones(side * side))[:, None] * (prefill + decode))


def program(load: Floats, *, sliced: bool) -> MatrixProgram:
    load = np.repeat(load / SLICES, SLICES, axis=0) if sliced else load
    rows, types = load.shape
    i, j = (index.ravel() for index in np.indices(load.shape))
    pairs, empty = rows * types, np.empty(0)
    share, count = np.arange(pairs), pairs + np.arange(types)
    return (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns([""] * pairs, upper=1.0, integer=sliced)
        .with_columns([""] * types, integer=True)
        .with_cost(count, PRICE)
        .with_rows(i, share, np.ones(pairs), np.ones(rows), np.ones(rows))
        .with_rows(
            np.concatenate([j, np.arange(types)]),
            np.concatenate([share, count]),
            np.concatenate([load.ravel(), -np.ones(types)]),
            np.full(types, -np.inf),
            np.zeros(types),
        )
    )


@pytest.mark.parametrize("side", [6, 8, 10])
def test_never_dearer(side: int) -> None:
    load = loads(side, rate_qps=40.0, seed=side)
    begun = time.perf_counter()
    ours = solve_at_scale(program(load, sliced=False), time_limit_s=20, mip_gap=0.0)
    ours_s = time.perf_counter() - begun
    theirs = open_backend("pulp:cbc").solve(program(load, sliced=True), time_limit_s=20, mip_gap=0.0)
    print(  # noqa: T201
        f"\n{side} x {side}: {ours.objective} $/h {ours.status} in {ours_s:.2f} s; "
        f"Mélange {theirs.objective} $/h {theirs.status} in {theirs.seconds:.2f} s, {theirs.seconds / ours_s:.0f} times"
    )
    assert ours.status == "optimal"
    assert ours.objective is not None
    assert theirs.objective is None or ours.objective <= theirs.objective * (1 + 1e-9)
    assert theirs.bound is None or ours.objective <= theirs.bound * (1 + 1e-6) or theirs.status != "optimal"
