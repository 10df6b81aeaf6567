from __future__ import annotations

import time

from qplan.solvers.scale.parallel import each


def test_the_answers_come_in_order() -> None:
    assert each(lambda item, _: item * 10, [3, 1, 2], time.perf_counter() + 100, workers=2) == [30, 10, 20]


def test_what_one_leaves_the_others_share() -> None:
    """Alone, the first of two may take half of the time; the last may take all that is left."""
    until = time.perf_counter() + 100
    told = each(lambda _, limit: limit - time.perf_counter(), ["first", "last"], until, workers=1)
    assert 20 < told[0] <= 50
    assert 60 < told[1] <= 100


def test_with_a_worker_for_each_none_has_to_wait() -> None:
    until = time.perf_counter() + 100
    assert all(left > 60 for left in each(lambda _, limit: limit - time.perf_counter(), [1, 2], until, workers=2))
