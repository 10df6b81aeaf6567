"""How classes are cut, and when."""

from __future__ import annotations

import numpy as np
import pytest

from qplan.core.workload import Workload
from qplan.solvers.fleet.buckets import Bucket, Buckets, cuts, worthwhile


@pytest.fixture
def chat() -> Workload:
    found = Workload.named("chat")
    assert found is not None
    return found


def test_the_first_cut_is_none_and_every_cut_keeps_the_means(chat: Workload) -> None:
    ways = cuts(chat)
    assert len(ways[0]) == 1
    assert len(ways) > 1
    for way in ways:
        assert sum(bucket.weight for bucket in way) == pytest.approx(1)
        mean = sum(bucket.weight * bucket.mix.mean_input_tokens for bucket in way)
        assert mean == pytest.approx(chat.mean_input_tokens)
        assert sum(len(bucket.mix.buckets) for bucket in way) == len(chat.buckets)


def test_requests_of_one_length_are_not_cut() -> None:
    assert [len(way) for way in cuts(Workload.fixed("isl=512,osl=64"))] == [1]


def test_a_cut_must_pay() -> None:
    one, halves = np.ones(1), np.array([0.5, 0.5])
    price = np.array([1.0, 1.0])
    whole = np.array([[10.0, 5.0]])
    alike = np.array([[10.0, 5.0], [10.0, 5.0]])
    apart = np.array([[20.0, 5.0], [5.0, 40.0]])  # each half has a deployment that serves it well
    assert worthwhile([one, halves], [whole, alike], price) == 0
    assert worthwhile([one, halves], [whole, apart], price) == 1
    nothing = np.zeros((1, 2))  # that serves the whole mix
    assert worthwhile([one, halves], [nothing, alike], price) == 1


def test_buckets_know_their_class(chat: Workload) -> None:
    whole = (Bucket(chat, 1.0),)
    buckets = Buckets.of([whole, cuts(chat)[1]])
    assert len(buckets) == 1 + len(cuts(chat)[1])
    assert buckets.of_class(0).tolist() == [0]
    assert buckets.weight[buckets.of_class(1)].sum() == pytest.approx(1)
