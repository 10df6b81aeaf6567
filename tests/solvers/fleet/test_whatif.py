"""Changes to a demand, as they are written."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qplan.core.demand import Demand
from qplan.core.errors import InputError
from qplan.solvers.fleet.whatif import changed


def test_gpus_more_or_fewer(small_demand: Demand) -> None:
    assert changed(small_demand, "+2h100").pools[0].count == 8
    assert changed(small_demand, "-3 x l40s").pools[1].count == 5
    assert changed(small_demand, "+4a100").pools[2].count == 4


def test_slos_rates_floors_prices_and_limits(small_demand: Demand) -> None:
    assert changed(small_demand, "slo.ttft=0.5s").classes[0].slos[0].threshold_s == 0.5
    assert changed(small_demand, "chat.slo.tpot=40ms").classes[0].slos[1].threshold_s == 0.04
    assert changed(small_demand, "qps=120").peak_qps == pytest.approx(120)
    assert max(changed(small_demand, "chat.qps=30").classes[0].rate_qps) == pytest.approx(30)
    assert changed(small_demand, "quality=95%").classes[0].quality_floor == 0.95
    assert set(changed(small_demand, "price.h100=9").pools[0].price_per_gpu_hour) == {9.0}
    assert changed(small_demand, "spare=1").spare == 1
    assert changed(small_demand, "power_cap=8kW").power_cap_w == 8000
    assert changed(small_demand, "energy.price=0.3").energy_price == (0.3,) * 3
    assert changed(small_demand, "energy.carbon=50").carbon == (50.0,) * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("+2h10", "unknown GPU 'h10'.*did you mean"),
        ("-2a100", "there are no A100-SXM4-80GB to take away"),
        ("-9h100", "there are only 6 of H100-SXM5-80GB"),
        ("slo.tffft=1s", "unknown metric 'tffft'.*did you mean 'ttft'"),
        ("slo.e2e=1s", "class chat has no SLO on e2e; it has p90:ttft=1s, p90:tpot=50ms"),
        ("slo.ttft=soon", "'soon' is not a quantity"),
        ("qps=0", "expected a rate of more than 0"),
        ("price.a100=3", "the demand has no A100"),
        ("price.h100=-3", "expected a number of at least 0"),
        ("spare=one", "expected a whole number"),
        ("power_cap=0", "expected a power of more than 0"),
        ("qsp=3", "cannot read 'qsp=3'.*did you mean 'qps'"),
        ("faster", "cannot read 'faster'"),
    ],
)
def test_what_cannot_be_read_or_changes_nothing_is_refused(small_demand: Demand, text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"--what-if: .*{said}|--what-if: {said}"):
        changed(small_demand, text)


def test_what_is_without_limit_cannot_grow(small_demand: Demand) -> None:
    unlimited = replace(small_demand.pools[0], count=math.inf)
    with pytest.raises(InputError, match="is without limit"):
        changed(replace(small_demand, pools=(unlimited,)), "+1h100")
    with pytest.raises(InputError, match="sets no limit on GPUs"):
        changed(replace(small_demand, pools=()), "+1h100")
