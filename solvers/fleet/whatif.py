"""Changes to a demand, as a person asks for them: ``+1h100``, ``slo.ttft=0.5s``, ``chat.qps=200``.

::

    change  = ("+" | "-") COUNT GPU                      GPUs more or fewer to be had
            | [ CLASS "." ] "slo." METRIC "=" DURATION    the threshold of an SLO
            | [ CLASS "." ] "qps=" RATE                   requests/s of the busiest period
            | [ CLASS "." ] "quality=" SHARE              floor on the quality of each request
            | "price." GPU "=" DOLLARS                    $/h of a GPU
            | "spare=" COUNT | "power_cap=" POWER | "energy.price=" DOLLARS | "energy.carbon=" GRAMS
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

from qplan.core.demand import Demand, Pool, RequestClass
from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.slo import METRICS, Slo
from qplan.core.units import parse_duration, parse_fraction, parse_number, parse_power, parse_rate

_GPUS = re.compile(r"([+-])\s*(\d+)\s*x?\s*([A-Za-z].*)")
_KEYS = ("slo.ttft", "qps", "quality", "price.GPU", "spare", "power_cap", "energy.price", "energy.carbon")


def changed(demand: Demand, text: str, where: str = "--what-if") -> Demand:
    """Return `demand` with one change made to it.

    Raises
    ------
    InputError
        When the change cannot be read, or there is nothing that it could change.
    """
    gpus = _GPUS.fullmatch(text.strip())
    if gpus is not None:
        count = int(gpus[2]) * (1 if gpus[1] == "+" else -1)
        return _more_gpus(demand, Gpu.named(gpus[3].strip(), where), count, where)
    key, equals, value = text.strip().partition("=")
    if not equals:
        raise _unreadable(text, where)
    head, _, rest = key.strip().partition(".")
    names = [one.name for one in demand.classes]
    chosen = [head] if head in names and rest else names
    what = rest if head in names and rest else key.strip()
    if what.startswith("slo."):
        metric = what.removeprefix("slo.")
        if metric not in METRICS:
            raise InputError(
                f"{where}: unknown metric '{metric}'; expected {', '.join(METRICS)}{nearest(metric, METRICS)}"
            )
        return _each(demand, chosen, lambda one: _with_slo(one, metric, parse_duration(value, where), where))
    if what == "qps":
        rate = parse_rate(value, where)
        if rate <= 0:
            raise InputError(f"{where}: '{text}'; expected a rate of more than 0")
        if chosen == names:
            return demand.scaled(rate / demand.peak_qps)
        return _each(demand, chosen, lambda one: _with_peak(one, rate))
    if what == "quality":
        floor = parse_fraction(value, where)
        return _each(demand, chosen, lambda one: replace(one, quality_floor=floor))
    return _of_all(demand, what, value, text, where)


def _of_all(demand: Demand, key: str, value: str, text: str, where: str) -> Demand:
    """Change what is not of one class."""
    periods = len(demand.hours)
    if key.startswith("price."):
        return _priced(demand, Gpu.named(key.removeprefix("price."), where), _at_least_zero(value, text, where), where)
    if key == "spare":
        if not value.strip().isdecimal():
            raise InputError(f"{where}: '{text}'; expected a whole number of replicas")
        return replace(demand, spare=int(value))
    if key == "power_cap":
        watts = parse_power(value, where)
        if watts <= 0:
            raise InputError(f"{where}: '{text}'; expected a power of more than 0")
        return replace(demand, power_cap_w=watts)
    if key == "energy.price":
        return replace(demand, energy_price=(_at_least_zero(value, text, where),) * periods)
    if key == "energy.carbon":
        return replace(demand, carbon=(_at_least_zero(value, text, where),) * periods)
    raise _unreadable(text, where)


def _unreadable(text: str, where: str) -> InputError:
    key = text.partition("=")[0]
    return InputError(
        f"{where}: cannot read '{text}'; expected +1h100, -2a100, slo.ttft=0.5s, CLASS.slo.ttft=0.5s or one of "
        f"{', '.join(f'{name}=...' for name in _KEYS)}{nearest(key, _KEYS)}"
    )


def _each(demand: Demand, chosen: list[str], change: Callable[[RequestClass], RequestClass]) -> Demand:
    classes = tuple(change(one) if one.name in chosen else one for one in demand.classes)
    return replace(demand, classes=classes)


def _with_slo(one: RequestClass, metric: str, threshold_s: float, where: str) -> RequestClass:
    mine = [slo for slo in one.slos if slo.metric == metric]
    if not mine:
        has = ", ".join(map(str, one.slos)) or "none"
        raise InputError(f"{where}: class {one.name} has no SLO on {metric}; it has {has}")
    slos = (Slo(metric, threshold_s, slo.percentile) if slo.metric == metric else slo for slo in one.slos)
    return replace(one, slos=tuple(slos))


def _with_peak(one: RequestClass, rate_qps: float) -> RequestClass:
    return replace(one, rate_qps=tuple(rate * rate_qps / max(one.rate_qps) for rate in one.rate_qps))


def _more_gpus(demand: Demand, gpu: Gpu, count: int, where: str) -> Demand:
    """Change the first pool of the type, of those bought on demand if there is one; or add such a pool."""
    if not demand.pools:
        raise InputError(f"{where}: the demand sets no limit on GPUs, so more or fewer of them change nothing")
    mine = sorted((pool for pool in demand.pools if pool.gpu.name == gpu.name), key=lambda pool: pool.committed)
    if not mine:
        if count < 0:
            raise InputError(f"{where}: there are no {gpu} to take away")
        new = Pool(gpu.name, gpu, float(count), (gpu.price_per_hour,) * len(demand.hours))
        return replace(demand, pools=(*demand.pools, new))
    first = mine[0]
    if math.isinf(first.count):
        raise InputError(f"{where}: {first.name} is without limit, so more or fewer of them change nothing")
    if first.count + count < 0:
        raise InputError(f"{where}: there are only {first.count:g} of {first.name} to take away")
    grown = replace(first, count=first.count + count)
    return replace(demand, pools=tuple(grown if pool is first else pool for pool in demand.pools))


def _priced(demand: Demand, gpu: Gpu, price: float, where: str) -> Demand:
    if not demand.pools:
        return replace(demand, prices={**demand.prices, gpu.name: price})
    if all(pool.gpu.name != gpu.name for pool in demand.pools):
        raise InputError(f"{where}: the demand has no {gpu}")
    prices = (price,) * len(demand.hours)
    return replace(
        demand,
        pools=tuple(
            replace(pool, price_per_gpu_hour=prices) if pool.gpu.name == gpu.name else pool for pool in demand.pools
        ),
    )


def _at_least_zero(value: str, text: str, where: str) -> float:
    number = parse_number(value, where)
    if number < 0:
        raise InputError(f"{where}: '{text}'; expected a number of at least 0")
    return number
