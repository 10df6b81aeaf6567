"""Demand files: YAML in, :class:`~qplan.core.demand.Demand` out, and one line for whatever is wrong.

:func:`example` shows every key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from qplan.core.demand import MEASURES, Demand, Pool, RequestClass
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.plan import Assumption
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.units import format_duration, parse_fraction, parse_power, parse_rate
from qplan.core.workload import Workload
from qplan.profiles.shapes import Arrivals, at_least_zero, count_periods, factors, figures
from qplan.profiles.workloads import read_workload
from qplan.profiles.yamlfile import Entry, read_yaml_file

T = TypeVar("T")

DEFAULT_PROFILES = "trtllm-composed"
DEFAULT_PERCENTILE = 90.0
DEFAULT_QUALITY = 0.99
DEFAULT_START_S = 120.0
HORIZON_HOURS = 24.0
TASKS = ("chat", "code", "summarization", "general")
BUYING = ("on-demand", "reserved", "spot")

_KEYS = (
    *("name", "profiles", "percentile", "periods", "period", "classes", "gpus", "energy", "power_cap", "spare"),
    *("start", "objective", "at_most", "at_least"),
)
_CLASS_KEYS = (
    *("name", "rate", "demand", "lengths", "trace", "task", "slo", "models", "quality", "mean_quality"),
    "quantizations",
)


def example() -> str:
    """Return a demand file with every key."""
    return files("qplan.profiles").joinpath("demand.yaml").read_text(encoding="utf-8")


def read_demand(path: Path) -> Demand:
    """Read a demand file.

    Raises
    ------
    InputError
        The file cannot be read, or something in it is wrong: file, line, path of the value, what was expected and the
        nearest valid choice.
    """
    root, _ = read_yaml_file(path)
    return demand_of(root, path.parent, path.stem)


def demand_of(root: Entry, folder: Path, name: str) -> Demand:
    """Check the entries of a demand file, whose paths are relative to `folder`, and return the demand."""
    fields = root.mapping(_KEYS)
    if "classes" not in fields:
        raise InputError(f"{root.where}: the key 'classes' is missing; `qplan capacity --example` shows every key")
    periods = count_periods(root)
    notes: list[Assumption] = []
    percentile = _get(fields, "percentile", _percentile, None)
    classes = _distinct(
        fields["classes"], lambda e: _class(e, folder, periods, percentile, notes), lambda one: one.name, "class"
    )
    hours = _get(fields, "period", lambda e: e.duration() / 3600, HORIZON_HOURS / periods[0])
    if "period" not in fields:
        notes.append(Assumption("length of a period", f"{hours:g} h, {periods[0]} of them", "period"))
    pools: tuple[Pool, ...] = ()
    if "gpus" in fields:
        single = fields["gpus"].fields
        if single is not None and "gpu" not in single:
            raise fields["gpus"].wrong("a list such as [{gpu: h100, count: 8}]")
        pools = _distinct(fields["gpus"], lambda e: _pool(e, periods), lambda pool: pool.name, "pool")
    else:
        notes.append(Assumption("GPUs", "every type of the profiles, any number, on demand", "gpus"))
    energy = fields["energy"].mapping(("price", "carbon")) if "energy" in fields else {}
    nothing = (0.0,) * periods[0]
    energy_price = _get(energy, "price", lambda e: figures(e, periods, at_least_zero, "$/kWh"), nothing)
    carbon = _get(energy, "carbon", lambda e: figures(e, periods, at_least_zero, "g/kWh"), nothing)
    if not any(energy_price):
        notes.append(Assumption("electricity", "in the price of the GPUs", "energy: {price: ...}"))
    start = fields["start"].mapping(("time", "cost")) if "start" in fields else {}
    start_s = _get(start, "time", _duration_or_zero, DEFAULT_START_S)
    if "time" not in start and periods[0] > 1:
        notes.append(Assumption("start of a replica", format_duration(start_s), "start: {time: ...}"))
    objective, then = _objective(fields["objective"]) if "objective" in fields else ((("cost", 1.0),), ())
    at_most = _at_most(fields["at_most"]) if "at_most" in fields else {}
    at_least = fields["at_least"].mapping(("quality",)) if "at_least" in fields else {}
    limits = {**at_most, **{key: _share(entry) for key, entry in at_least.items()}}
    if not any(carbon) and "carbon" in {*(measure for measure, _ in objective), *then, *limits}:
        place = fields["at_most"] if "carbon" in limits else fields["objective"]
        raise InputError(
            f"{place.where}: carbon needs the g CO2e/kWh of the electricity; add 'energy: {{carbon: ...}}'"
        )
    notes.append(Assumption("arrivals", "Poisson within a period, split at random among the replicas", "classes"))
    return Demand(
        name=_get(fields, "name", Entry.string, name),
        classes=classes,
        hours=(hours,) * periods[0],
        pools=pools,
        energy_price=energy_price,
        carbon=carbon,
        power_cap_w=_get(fields, "power_cap", _power, math.inf),
        spare=_get(fields, "spare", lambda e: e.count(least=0, most=100), 0),
        start_s=start_s,
        start_cost=_get(start, "cost", at_least_zero, 0.0),
        objective=objective,
        profiles=_get(fields, "profiles", lambda e: _profiles(e, folder), DEFAULT_PROFILES),
        then=then,
        at_most=limits,
        assumptions=tuple(dict.fromkeys(notes)),
    )


def _class(
    entry: Entry, folder: Path, periods: tuple[int, str], percentile: float | None, notes: list[Assumption]
) -> RequestClass:
    fields = entry.mapping(_CLASS_KEYS)
    for key in ("name", "models"):
        if key not in fields:
            raise InputError(f"{entry.where}: a class needs the key '{key}'")
    name = fields["name"].string("a name")
    trace = _get(fields, "trace", lambda e: _file(e, folder), None)
    if trace is None and not {"rate", "lengths"} <= set(fields):
        missing = "rate" if "rate" not in fields else "lengths"
        raise InputError(f"{entry.where}: class {name} needs the key '{missing}', or a 'trace' to take it from")
    lengths = fields.get("lengths", fields.get("trace"))
    assert lengths is not None
    workload = _workload(lengths, folder)
    if "task" in fields:
        workload = replace(workload, task=fields["task"].one_of(TASKS))
    arrivals = None if trace is None else Arrivals.read(trace, fields["trace"].where)
    shape, rate = _shape_and_rate(fields, arrivals, periods)
    if "demand" not in fields and trace is None and periods[0] > 1:
        notes.append(Assumption(f"demand of {name}", "the same in all periods", "demand: diurnal"))
    if trace is not None and shape.text == "trace":
        notes.append(
            Assumption(f"demand of {name}", f"the trace's own time, stretched over the {periods[0]} periods", "demand")
        )
    slos = _slos(fields["slo"]) if "slo" in fields else ()
    if not slos:
        notes.append(Assumption(f"SLOs of {name}", "none: any latency that does not grow without end", "slo"))
    if percentile is None and any(slo.percentile is None for slo in slos):
        notes.append(Assumption("percentile of the SLOs", f"p{DEFAULT_PERCENTILE:g}", "percentile"))
    models = _distinct(
        fields["models"],
        lambda e: e.read(Model.named, "a model such as llama-3.1-8b"),
        lambda model: model.name,
        "model",
    )
    if "quality" not in fields:
        floor = f"at least {DEFAULT_QUALITY:.0%} of {models[0]} at 16 bits on {workload.task} tasks"
        notes.append(Assumption(f"quality floor of {name}", floor, "quality"))
    return RequestClass(
        name=name,
        workload=workload,
        slos=tuple(slo.at(percentile or DEFAULT_PERCENTILE) for slo in slos),
        models=models,
        quality_floor=_get(fields, "quality", _share, DEFAULT_QUALITY),
        mean_quality=_get(fields, "mean_quality", _share, None),
        rate_qps=tuple(rate * factor for factor in factors(shape, periods, arrivals)),
        quantizations=_get(fields, "quantizations", lambda e: _distinct(e, _quantization, str, "quantization"), None),
        trace=None
        if trace is None or arrivals is None
        else arrivals.trace(trace, lengths="lengths" not in fields, by_period=shape.text == "trace"),
    )


def _shape_and_rate(
    fields: Mapping[str, Entry], arrivals: Arrivals | None, periods: tuple[int, str]
) -> tuple[Entry, float]:
    """Return the entry of the shape, and the requests/s of the busiest period: a trace's own where none is said."""
    own = "flat" if arrivals is None or periods[0] == 1 else "trace"
    shape = fields.get("demand", Entry(fields["name"].where, text=own))
    if "rate" in fields:
        return shape, _positive_rate(fields["rate"])
    assert arrivals is not None
    return shape, max(arrivals.rates(periods[0]))


def _workload(entry: Entry, folder: Path) -> Workload:
    text = entry.string("lengths such as chat or isl=512,osl=128")
    if (folder / text).is_file():
        text = str(folder / text)
    return read_workload(text, entry.where)


def _pool(entry: Entry, periods: tuple[int, str]) -> Pool:
    """Read ``h100``, or ``{gpu: h100, count: 8, price: 3.1, buy: reserved, node: 8}``."""
    keys = ("gpu", "name", "count", "price", "buy", "availability", "node")
    fields = entry.mapping(keys) if entry.fields is not None else {"gpu": entry}
    if "gpu" not in fields:
        raise InputError(f"{entry.where}: a pool of GPUs needs the key 'gpu'")
    gpu = fields["gpu"].read(Gpu.named, "a GPU such as h100")
    buying = _get(fields, "buy", lambda e: e.one_of(BUYING), "on-demand")
    if "availability" in fields and buying != "spot":
        raise InputError(
            f"{fields['availability'].where}: only what is bought as spot has an availability; add buy: spot"
        )
    if buying == "spot" and "availability" not in fields:
        raise InputError(
            f"{entry.where}: spot GPUs need the share of the time that they are there; add availability: 90%"
        )
    price = _get(
        fields, "price", lambda e: figures(e, periods, at_least_zero, "$/h"), (gpu.price_per_hour,) * periods[0]
    )
    count = _get(fields, "count", lambda e: float(e.count(least=0)), math.inf)
    node = _get(fields, "node", lambda e: e.count(most=1024), 1)
    if 0 < count < node:
        raise InputError(f"{fields['node'].where}: nodes of {node} GPUs, but there are only {count:g}: not one node")
    name = gpu.name if buying == "on-demand" else f"{gpu.name} {buying}"
    return Pool(
        name=_get(fields, "name", Entry.string, name),
        gpu=gpu.priced(price[0], entry.where) if "price" in fields else gpu,
        count=count,
        price_per_gpu_hour=price,
        committed=buying == "reserved",
        availability=_get(fields, "availability", Entry.share, 1.0),
        node_gpus=node,
    )


def _objective(entry: Entry) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """Read one measure, a mapping of weights, or a list of measures to be minimised in turn."""
    if entry.fields is not None:
        weights = tuple((name, at_least_zero(weight)) for name, weight in entry.mapping(MEASURES).items())
        if not any(weight for _, weight in weights):
            raise entry.wrong("a weight above 0 for one measure at least")
        return weights, ()
    first, *others = entry.listed()
    measures = [first.one_of(MEASURES)]
    for other in others:
        if other.one_of((*MEASURES, "quality")) in measures:
            raise InputError(f"{other.where}: the measure {other.text} is given twice")
        measures.append(other.one_of((*MEASURES, "quality")))
    return ((measures[0], 1.0),), tuple(measures[1:])


def _at_most(entry: Entry) -> dict[str, float]:
    return {name: at_least_zero(limit) for name, limit in entry.mapping(MEASURES).items()}


def _slos(entry: Entry) -> tuple[Slo, ...]:
    for item in entry.listed():
        Slo.parse_all([item.string("SLOs such as [p90:ttft=1s, p90:tpot=50ms]")], item.where)
    return Slo.parse_all([item.string() for item in entry.listed()], entry.where)


def _quantization(entry: Entry) -> Quantization:
    return entry.read(Quantization.parse)


def _profiles(entry: Entry, folder: Path) -> str:
    text = entry.string()
    return str(folder / text) if (folder / text).is_file() else text


def _file(entry: Entry, folder: Path) -> Path:
    path = folder / entry.string()
    if not path.is_file():
        raise InputError(f"{entry.where}: no file {path}")
    return path


def _percentile(entry: Entry) -> float:
    number = at_least_zero(entry)
    if not 1 <= number < 100:
        raise entry.wrong("a percentile from 1 to below 100, such as 90")
    return number


def _share(entry: Entry) -> float:
    share = parse_fraction(entry.string("a share such as 98%"), entry.where)
    if not 0 <= share <= 2:
        raise entry.wrong("a share such as 98%")
    return share


def _power(entry: Entry) -> float:
    watts = parse_power(entry.string("a power such as 60kW"), entry.where)
    if watts <= 0:
        raise entry.wrong("a power of more than 0, such as 60kW")
    return watts


def _positive_rate(entry: Entry) -> float:
    rate = parse_rate(entry.string("a rate such as 40qps"), entry.where)
    if rate <= 0:
        raise entry.wrong("a rate of more than 0")
    return rate


def _duration_or_zero(entry: Entry) -> float:
    return 0.0 if entry.text == "0" else entry.duration()


def _get(fields: Mapping[str, Entry], key: str, read: Callable[[Entry], T], default: T) -> T:
    """Read the field `key`, or return `default` where the file does not have it."""
    return read(fields[key]) if key in fields else default


def _distinct(entry: Entry, read: Callable[[Entry], T], key: Callable[[T], str], what: str) -> tuple[T, ...]:
    """Read every entry of a list; no two may have the same key."""
    values: list[T] = []
    for item in entry.listed():
        value = read(item)
        if any(key(value) == key(other) for other in values):
            raise InputError(f"{item.where}: the {what} {key(value)} is given twice")
        values.append(value)
    return tuple(values)
