"""The question about one rate as a demand of one class and one period, an hour."""

from __future__ import annotations

import numpy as np

from qplan.core.demand import Demand, Pool, RequestClass
from qplan.core.gpu import Gpu
from qplan.solvers.capacity.ask import CapacityAsk


def demand_of_ask(ask: CapacityAsk) -> Demand:
    """Return `ask` as a demand; what is by the hour there is for one hour here."""
    one = RequestClass(
        name=ask.workload.name,
        workload=ask.workload,
        slos=ask.slos,
        models=ask.models,
        quality_floor=ask.quality_floor,
        mean_quality=None,
        rate_qps=(ask.rate_qps,),
        quantizations=ask.quantizations,
    )
    gpus = {name: ask.price(Gpu.named(name)) for name in ask.inventory or ()}
    return Demand(
        name=f"{ask.workload.name} at {ask.rate_qps:g} requests/s",
        classes=(one,),
        hours=(1.0,),
        pools=tuple(
            Pool(name, gpus[name], count, (gpus[name].price_per_hour,)) for name, count in (ask.inventory or {}).items()
        ),
        energy_price=(0.0,),
        carbon=(0.0,),
        power_cap_w=np.inf,
        spare=ask.spare,
        start_s=0.0,
        start_cost=0.0,
        objective=((ask.objective, 1.0),),
        profiles=ask.profiles,
        assumptions=ask.assumptions,
        prices=ask.prices,
    )
