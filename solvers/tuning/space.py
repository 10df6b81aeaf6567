"""The search space of a study: every configuration that could be measured, and the combinations that are not.

A parameter is a list of choices; a configuration takes one of each. What cannot run is left out with its reason, by the
rules that campaigns go by as well: :meth:`qplan.core.deployment.Deployment.refusal`, and the engine's own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.measure.campaign.grid import Refused, gpu_refusal
from qplan.measure.campaign.points import Target
from qplan.solvers.tuning.candidates import Candidates, Value

MOST_COMBINATIONS = 100_000

#: Parameters that say what is deployed, in the order in which a configuration is printed.
DEPLOYED = ("model", "quantization", "kv", "gpu", "tp", "engine", "max_sequences")

UNQUANTIZED_KV = "KV16"

#: Parameters that engines call by names of their own, and the flags that a value stands for.
KNOBS: Mapping[str, Mapping[str, Callable[[Any], dict[str, Value]]]] = {
    "max_batched_tokens": {
        "trtllm": lambda tokens: {"max_num_tokens": tokens},
        "vllm": lambda tokens: {"max-num-batched-tokens": tokens},
        "sglang": lambda tokens: {"chunked-prefill-size": tokens},
        "llamacpp": lambda tokens: {"batch-size": tokens},
    },
    "chunked_prefill": {
        "trtllm": lambda on: {"enable_chunked_prefill": True} if on else {},
        "vllm": lambda on: {"enable-chunked-prefill" if on else "no-enable-chunked-prefill": True},
    },
    "memory_fraction": {
        "trtllm": lambda share: {"kv_cache_free_gpu_memory_fraction": share},
        "vllm": lambda share: {"gpu-memory-utilization": share},
        "sglang": lambda share: {"mem-fraction-static": share},
    },
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the space: its name, what engines load, and what its requests need.

    Attributes
    ----------
    weights
        Path, Hub id or ``smollm2``; empty where nothing is measured anew.
    context_tokens, max_sequences
        Longest sequence; most sequences decoded together where the space does not vary that.
    checkpoints
        Weights that were quantized beforehand, by canonical quantization.
    """

    name: str
    weights: str = ""
    context_tokens: int = 2048
    max_sequences: int = 8
    checkpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """A rule of the user: where `when` holds, only the values of `only` are tried; nothing at all without `only`."""

    when: Mapping[str, tuple[Value, ...]]
    only: Mapping[str, tuple[Value, ...]]
    where: str

    def allows(self, parameters: Mapping[str, Value]) -> bool:
        """Whether a combination keeps this rule; a parameter that it does not have breaks none."""
        applies = all(name in parameters and parameters[name] in values for name, values in self.when.items())
        if not applies:
            return True
        return bool(self.only) and all(parameters.get(name, values[0]) in values for name, values in self.only.items())


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of the space.

    Attributes
    ----------
    parameters
        Value of each parameter that the space varies.
    target
        What is started, and what its observations carry.
    """

    parameters: Mapping[str, Value]
    target: Target

    @property
    def gpu(self) -> Gpu:
        """Kind of the GPUs."""
        return Gpu.named(self.target.gpu)

    @property
    def gpus(self) -> int:
        """GPUs that it takes."""
        return self.target.tp

    @property
    def columns(self) -> dict[str, Any]:
        """Identity columns of its observations, the engine's version left out.

        Parameters that are no flag of the engine are among the settings, so that two configurations never share an
        observation.
        """
        settings: dict[str, Value] = dict(self.target.settings)
        if "max_sequences" in self.parameters:
            settings["max_sequences"] = self.parameters["max_sequences"]
        return self.target.columns() | {"settings": json.dumps(settings, sort_keys=True) if settings else None}

    def __str__(self) -> str:
        """Print what tells it from the others."""
        said = [str(self.parameters[name]) for name in DEPLOYED[:4] if name in self.parameters]
        if "tp" in self.parameters:
            said.append(f"TP{self.parameters['tp']}")
        if "engine" in self.parameters:
            said.append(str(self.parameters["engine"]))
        others = [name for name in self.parameters if name not in DEPLOYED[:6]]
        return " ".join([*said, *(f"{name}={self.parameters[name]}" for name in others)])


@dataclass(frozen=True, slots=True)
class Space:
    """Choices for every parameter, and the rules.

    Attributes
    ----------
    choices
        By parameter: those of :data:`DEPLOYED`, of :data:`KNOBS`, and flags of an engine by their own names.
    knobs_of
        Names of the parameters that an engine takes beyond :data:`DEPLOYED`, by engine.
    where
        File and line, for errors.
    """

    models: tuple[ServedModel, ...]
    choices: Mapping[str, tuple[Value, ...]]
    knobs_of: Mapping[str, tuple[str, ...]]
    conditions: tuple[Condition, ...]
    where: str

    @property
    def varied(self) -> tuple[str, ...]:
        """Parameters with more than one choice; the quantization where there is none."""
        return tuple(name for name, values in self.choices.items() if len(values) > 1) or ("quantization",)


@dataclass(frozen=True, slots=True)
class Enumerated:
    """The configurations of a space, and the combinations that are none."""

    configurations: tuple[Configuration, ...]
    refused: tuple[Refused, ...]

    def candidates(self, **known: Any) -> Candidates:
        """Return the configurations as a sampler wants them; `known` are further fields of its candidates."""
        ids = tuple(str(one) for one in self.configurations)
        return Candidates(ids, tuple(one.parameters for one in self.configurations), **known)

    def of(self, parameters: Mapping[str, Any]) -> Configuration | None:
        """Return the configuration with exactly these parameters."""
        return next((one for one in self.configurations if one.parameters == dict(parameters)), None)


def enumerate_space(space: Space, refusal: Callable[[Configuration], str | None]) -> Enumerated:
    """Return every configuration that can run.

    Parameters
    ----------
    refusal
        Says why a configuration cannot be had where this study measures, or looks up; asked after the rules.

    Raises
    ------
    InputError
        There are too many combinations, or none is left.
    """
    found: list[Configuration] = []
    refused: list[Refused] = []
    for one in combinations(space):
        reason = _against_conditions(space, one) or gpu_refusal(one.gpu, one.target) or refusal(one)
        if reason is None:
            found.append(one)
        else:
            refused.append(Refused(str(one), reason))
    if not found:
        first = f"; the first: {refused[0].what}: {refused[0].reason}" if refused else ""
        raise InputError(f"{space.where}: none of {len(refused)} combinations can be measured{first}")
    return Enumerated(tuple(found), tuple(refused))


def combinations(space: Space) -> Iterator[Configuration]:
    """Yield every combination of choices that is written validly, each once."""
    count = math.prod(len(values) for values in space.choices.values())
    if count > MOST_COMBINATIONS:
        raise InputError(f"{space.where}: {count:,} combinations; expected at most {MOST_COMBINATIONS:,}")
    models = {model.name: model for model in space.models}
    varied, seen = set(space.varied), set()
    for values in itertools.product(*space.choices.values()):
        chosen = dict(zip(space.choices, values, strict=True))
        engine = str(chosen["engine"])
        # A parameter that this engine does not have is none of its configurations'.
        chosen = {name: v for name, v in chosen.items() if name in DEPLOYED or name in space.knobs_of[engine]}
        parameters = {name: value for name, value in chosen.items() if name in varied}
        key = tuple(parameters.items())
        if key not in seen:
            seen.add(key)
            yield Configuration(parameters, _target(models[str(chosen["model"])], chosen))


def _target(model: ServedModel, chosen: Mapping[str, Value]) -> Target:
    engine = str(chosen["engine"])
    quantization = str(with_kv(str(chosen["quantization"]), str(chosen.get("kv", UNQUANTIZED_KV))))
    settings: dict[str, Value] = {}
    for name, value in chosen.items():
        if name not in DEPLOYED:
            settings |= KNOBS[name][engine](value) if name in KNOBS else {name: value}
    return Target(
        model=model.name,
        weights=model.checkpoints.get(quantization, model.weights),
        quantization=quantization,
        gpu=str(chosen["gpu"]),
        tp=int(chosen["tp"]),
        engine=engine,
        settings=settings,
        context_tokens=model.context_tokens,
        max_sequences=int(chosen.get("max_sequences", model.max_sequences)),
    )


def with_kv(quantization: str, kv: str, where: str = "kv") -> Quantization:
    """Return a quantization with this format of its KV cache: ``KV16``, ``KV8-INT`` ..."""
    return Quantization.parse(quantization if kv == UNQUANTIZED_KV else f"{quantization}-{kv}", where)


def _against_conditions(space: Space, one: Configuration) -> str | None:
    target = one.target
    whole = {"model": target.model, "gpu": target.gpu, "tp": target.tp, "engine": target.engine, **one.parameters}
    broken = next((rule for rule in space.conditions if not rule.allows(whole)), None)
    return None if broken is None else f"the condition at {broken.where}"


def known_model(name: str) -> Model | None:
    """Return a model of the catalogue, or ``None``: of others nothing is known beforehand."""
    try:
        return Model.named(name)
    except InputError:
        return None


def groups_of(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """Name for each configuration what its quality depends on: model, weights, quantization and engine."""
    return tuple(
        f"{one.target.model} {one.target.quantization} {one.target.engine} {one.target.weights}".strip()
        for one in configurations
    )


def memory_groups_of(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """Name for each configuration what its memory depends on: on a CPU weights and KV cache, on GPUs every setting."""
    return tuple(
        f"{group} TP{one.target.tp} {one.target.context_tokens * one.target.max_sequences}"
        if one.gpu.is_cpu
        else str(one)
        for one, group in zip(configurations, groups_of(configurations), strict=True)
    )
