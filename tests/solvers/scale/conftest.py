"""Small random fleet programs with every kind of row that a fleet program has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qplan.solvers.backends import MatrixProgram

FleetProgramMaker = Callable[[int], MatrixProgram]


def _random_fleet(seed: int) -> MatrixProgram:
    """Return a program of 1-3 models, each with its buckets and deployments, and rows over both beside.

    Columns: one share for each eligible pair, then one count for each deployment. Rows: demand, capacity,
    inventory (may bind), an average quality for each model, sometimes a budget of watts over all counts.
    """
    rng = np.random.default_rng(seed)
    models = int(rng.integers(1, 4))
    buckets, deployments = int(rng.integers(models, 7)), int(rng.integers(models + 1, 10))
    of_bucket, of_deployment = np.arange(buckets) % models, np.arange(deployments) % models
    pair_bucket, pair_deployment = np.nonzero(
        (of_bucket[:, None] == of_deployment) & (rng.random((buckets, deployments)) < 0.9)
    )
    n_pairs, count = len(pair_bucket), len(pair_bucket) + np.arange(deployments)
    load = rng.lognormal(-0.5, 1.0, n_pairs)
    gpus = 2 ** rng.integers(0, 3, deployments)
    load /= gpus[pair_deployment]
    price = gpus * rng.uniform(1.0, 4.0, deployments)
    empty = np.empty(0)
    program = (
        MatrixProgram(empty, empty, empty, np.empty(0, bool), ())
        .with_columns([""] * n_pairs)
        .with_columns([""] * deployments, integer=True, upper=40.0 if seed % 3 else np.inf)
        .with_cost(np.arange(n_pairs + deployments), np.concatenate([rng.uniform(0, 0.3, n_pairs), price]))
        .with_rows(pair_bucket, np.arange(n_pairs), np.ones(n_pairs), np.ones(buckets), np.ones(buckets))
        .with_rows(
            np.concatenate([pair_deployment, np.arange(deployments)]),
            np.concatenate([np.arange(n_pairs), count]),
            np.concatenate([load, -np.ones(deployments)]),
            np.full(deployments, -np.inf),
            np.zeros(deployments),
        )
    )
    types = rng.integers(0, 2, deployments)
    inventory = np.ceil(rng.uniform(1.0, 5.0, 2) * load.sum() / deployments * gpus.mean()) + 2
    program = program.with_rows(types, count, gpus.astype(float), np.full(2, -np.inf), inventory)
    quality = rng.uniform(0.8, 1.0, deployments)[pair_deployment] - rng.uniform(0.8, 0.93)
    program = program.with_rows(
        of_bucket[pair_bucket], np.arange(n_pairs), quality, np.zeros(models), np.full(models, np.inf)
    )
    if seed % 2:
        watts = gpus * rng.uniform(0.3, 0.7, deployments)
        program = program.with_row(count, watts, upper=float(rng.uniform(1.0, 3.0) * load.sum()))
    return program


@pytest.fixture
def random_fleet() -> FleetProgramMaker:
    """Makes the random fleet program of a seed."""
    return _random_fleet
