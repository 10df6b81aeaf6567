from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

from qplan.core.errors import InputError

pytest.importorskip("sklearn")

from qplan.models.load.unseen import FEATURES, UnseenLlm
from qplan.models.steptimes import Floats

USERS = (1, 8, 32, 128)
# Memory bytes, bandwidth bytes/s, FLOP/s, code.
GPUS = ((40e9, 1.555e12, 312e12, 0.0), (80e9, 3.35e12, 989e12, 1.0))
# Parameters, encoder-decoder, flash attention, layers, KV bytes per token.
LLMS = {
    "a-3b": (3e9, 1, 0, 24, 2e5),
    "b-7b": (7e9, 0, 1, 32, 5e5),
    "c-13b": (13e9, 0, 1, 40, 8e5),
    "d-7b-padded": (7e9, 0, 0, 32, 5e5),
    "e-16b": (16e9, 0, 1, 44, 1e6),
}
NEW = (10e9, 0, 1, 36, 6e5)


def rows(llm: tuple[float, ...]) -> Floats:
    return np.array([(users, *llm, count, *gpu) for gpu, count, users in product(GPUS, (1, 2), USERS)])


def truth(X: Floats) -> Floats:
    """Return a server of the same kind, written down anew: its cap, its steps and its queue."""
    users, parameters, _, flash, layers, kv_bytes, n, memory, bandwidth, _, _ = X.T
    cap = (0.9 * n * memory - 2 * parameters) / kv_bytes / np.where(flash == 1, 800, 2500)
    batch = np.minimum(0.8 * users, cap)
    median = 3e-4 * layers + 2.4 * parameters / (n * bandwidth) + 4e-4 * batch
    mean = median + 4e-4 * batch
    nttft = 5e-4 * users**0.6 + 0.25 * np.maximum(users - batch, 0) / batch * mean
    return np.column_stack([nttft, median, mean, batch])


@dataclass(frozen=True, slots=True)
class Sample:
    X: Floats
    y: Floats
    llms: Any


def make(noise: float) -> Sample:
    X = np.concatenate([rows(llm) for llm in LLMS.values()])
    llms = np.repeat(list(LLMS), len(rows(NEW)))
    shift = np.random.default_rng(1).normal(size=len(LLMS)) * noise
    return Sample(X, truth(X) * np.exp(np.repeat(shift, len(rows(NEW))))[:, None], llms)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make(0.0)


@pytest.fixture(scope="module")
def model(sample: Sample) -> UnseenLlm:
    return UnseenLlm().fit(sample.X, sample.y, sample.llms)


def test_predicts_an_llm_that_it_never_saw(model: UnseenLlm) -> None:
    error = np.abs(np.log(model.predict(rows(NEW)) / truth(rows(NEW)))).mean(axis=0)
    assert (error < [0.35, 0.15, 0.2, 0.2]).all()


def test_latency_never_falls_with_users(model: UnseenLlm) -> None:
    users = np.arange(1, 300, dtype=float)
    X = np.repeat(rows(NEW)[:1], len(users), axis=0)
    X[:, 0] = users
    assert (np.diff(model.predict(X)[:, :2], axis=0) >= 0).all()


def test_more_memory_holds_a_larger_batch(model: UnseenLlm) -> None:
    X = np.repeat(rows(NEW)[3:4], 2, axis=0)
    X[1, FEATURES.index("memory_bytes")] *= 2
    small, large = model.predict(X)
    assert large[3] > small[3]
    assert large[0] < small[0]


def test_unknown_gpu_type_has_neutral_factors(model: UnseenLlm) -> None:
    X = rows(NEW)
    X[:, -1] = 7.0
    neutral = UnseenLlm().set_params()
    neutral.gpus_, neutral.n_features_in_ = np.array([7.0]), X.shape[1]
    factors = 3 * len(model.gpus_)
    neutral.coefficients_ = np.concatenate([model.coefficients_[:-factors], np.zeros(3)])
    assert model.predict(X) == pytest.approx(neutral.predict(X))
    assert model.predict(X) != pytest.approx(model.predict(rows(NEW)))


def test_targets_may_be_missing(sample: Sample) -> None:
    y = sample.y.copy()
    y[:, 2:] = np.nan
    model = UnseenLlm().fit(sample.X, y, sample.llms)
    error = np.abs(np.log(model.predict(rows(NEW))[:, :2] / truth(rows(NEW))[:, :2])).mean(axis=0)
    assert (error < [0.5, 0.2]).all()


def test_spread_grows_with_what_llms_hide(model: UnseenLlm) -> None:
    hidden = make(0.5)
    other = UnseenLlm().fit(hidden.X, hidden.y, hidden.llms)
    assert (other.llm_spread_ > 1.5 * model.llm_spread_).all()


def test_scenarios_are_seeded_and_move_a_profile_as_one(model: UnseenLlm) -> None:
    X = rows(NEW)
    draws = model.scenarios(X, 500, seed=3)
    assert draws.shape == (500, len(X), 2)
    assert (draws == model.scenarios(X, 500, seed=3)).all()
    moved = np.log(draws / model.predict(X)[:, :2]).reshape(500, -1, len(USERS), 2)
    assert np.ptp(moved, axis=2).max() < 1e-9
    assert np.ptp(moved, axis=1).min() > 0
    expected = np.hypot(model.llm_spread_, model.profile_spread_)
    assert moved[:, 0, 0].std(axis=0) == pytest.approx(expected, rel=0.15)


def changed(X: Floats, column: str, value: float) -> Floats:
    X = X.copy()
    X[5, FEATURES.index(column)] = value
    return X


def test_bad_input(model: UnseenLlm, sample: Sample) -> None:
    X, y, llms = sample.X, sample.y, sample.llms
    for bad, message in (
        ((X[:, :-1], y, llms), "expected 11 columns: users"),
        ((X, y[:, :2], llms), "y of shape"),
        ((X, -y, llms), "not positive"),
        ((X, y, ["one"] * len(X)), "1 LLMs: expected 3"),
        ((changed(X, "flash_attention", 2), y, llms), "must be 0 or 1"),
        ((X[X[:, 0] < 16], y[X[:, 0] < 16], llms[X[:, 0] < 16]), "16 users or more"),
    ):
        with pytest.raises(InputError, match=message):
            UnseenLlm().fit(*bad)
    with pytest.raises(InputError, match="missing or not positive"):
        model.predict(changed(X, "parameters", np.nan))
