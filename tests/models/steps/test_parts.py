from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.models.steps.parts import KINDS, NAMES, NOMINAL, Parts
from tests.models.steps.made_up import deployment

RNG = np.random.default_rng(3)
DEPLOYMENTS = [
    deployment(),
    deployment("llama-3.1-70b", "W8A8KV8-FP", "h100", 8),
    deployment("llama-2-7b", "W4A16", "l40s", 2),
]


def iterations(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prefill = np.round(RNG.random(count) * (RNG.random(count) < 0.7) * 10 ** (RNG.random(count) * 4.5))
    batch = np.round(RNG.random(count) * 600)
    return prefill, batch, np.round(batch * 10 ** (RNG.random(count) * 4.5))


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=str)
def test_the_sum_is_that_of_the_columns(one: Deployment) -> None:
    factors = RNG.random(len(NAMES)) * 3
    work = (*iterations(500), 1 + RNG.integers(0, 8, 500).astype(float))
    expected = Parts.of(one).columns(*work) @ factors
    np.testing.assert_allclose(Parts.of(one).time_s(factors, *work), expected, rtol=1e-12)


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=str)
def test_times_never_fall_when_anything_grows(one: Deployment) -> None:
    # Any factors of at least 0, as unlike efficiencies as they come.
    parts, factors = Parts.of(one), RNG.exponential(1.0, len(NAMES)) * (RNG.random(len(NAMES)) < 0.6)
    before = iterations(3000)
    for grown in range(3):
        after = tuple(x + (np.ceil(RNG.random(3000) * 500) if n == grown else 0) for n, x in enumerate(before))
        base, more = parts.time_s(factors, *before), parts.time_s(factors, *after)
        assert (more >= base * (1 - 1e-12)).all()


def test_far_beyond_every_band_time_is_proportional_to_the_work() -> None:
    parts = Parts.of(deployment())
    at = [parts.time_s(NOMINAL, np.zeros(1), np.array([512.0]), np.array([512 * 1e5 * n])) for n in (1, 2, 3)]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0])


def test_all_reduces_belong_to_groups_of_their_size() -> None:
    work = np.array([700.0]), np.zeros(1), np.zeros(1)
    for tp in (1, 2, 4, 8):
        ideal = Parts.of(deployment(tp=tp)).columns(*work)[0]
        active = {name for name, time in zip(NAMES, ideal, strict=True) if "allreduce" in name and time > 0}
        assert bool(active) == (tp > 1)
        assert {name for name in active if " at tp " in name} == {
            name for name in NAMES if name.endswith(f" at tp {tp}")
        }


def test_a_mixture_of_experts_reads_more_weights_for_more_tokens() -> None:
    dense = deployment("llama-2-7b")
    mixture = dataclasses.replace(dense, model=dataclasses.replace(dense.model, experts=8, experts_per_token=2))
    weights = Parts.of(mixture).columns(np.array([1.0, 64.0]), np.zeros(2), np.zeros(2))[:, NAMES.index("weights")]
    assert weights[1] > 2 * weights[0]


def test_bands_of_one_part_are_of_one_kind() -> None:
    assert KINDS[NAMES.index("gemm from 0")] == KINDS[NAMES.index("gemm from 8192")] == "gemm"
    assert len(NAMES) == len(set(NAMES)) == len(NOMINAL) == len(KINDS)
