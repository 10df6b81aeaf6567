"""Plans of a growing demand."""

from __future__ import annotations

import pytest

from qplan.core.demand import Demand
from qplan.core.errors import InputError
from qplan.solvers.fleet.sweep import parse_sweep, sweep


def test_ranges() -> None:
    assert parse_sweep("qps=10..200/3") == (10.0, 105.0, 200.0)
    assert len(parse_sweep("qps = 1qps .. 60/min/2".replace("60/min/2", "2"))) == 12
    for text in ("qps=10", "rate=1..2", "qps=20..10", "qps=0..5", "qps=1..2/1"):
        with pytest.raises(InputError, match="--sweep"):
            parse_sweep(text)


def test_cost_grows_with_the_rate_until_the_gpus_are_gone(small_demand: Demand) -> None:
    points = sweep(small_demand, (20.0, 60.0, 5000.0))
    few, more, most = (point.answer.plan for point in points)
    assert few.totals is not None
    assert more.totals is not None
    assert few.totals.cost < more.totals.cost
    assert (most.status, most.constraint) == ("infeasible", "inventory")
    assert max(sum(period.rate_qps.values()) for period in few.periods) == pytest.approx(20)
