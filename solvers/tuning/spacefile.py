"""The space of a tuning file: models, choices of every parameter, and the rules of its conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.profiles.yamlfile import Entry
from qplan.solvers.tuning.candidates import Value
from qplan.solvers.tuning.entries import distinct, optional
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

_MOST_TP = 1024
_MOST_SEQUENCES = 1_000_000


def read_space(fields: Mapping[str, Entry]) -> Space:
    """Read the choices of every parameter, and the conditions.

    Parameters
    ----------
    fields
        Keys of the file; `models`, `space` and `conditions` are read.
    """
    entry = fields["space"]
    entries = entry.mapping((*DEPLOYED, *KNOBS, "settings"))
    for key in ("quantization", "gpu", "engine"):
        if key not in entries:
            raise InputError(f"{entry.where}: the parameter '{key}' is missing")
    models = _models(fields, entries)
    engines = distinct(entries["engine"], _engine)
    choices: dict[str, tuple[Value, ...]] = {
        "model": tuple(model.name for model in models),
        "quantization": distinct(entries["quantization"], lambda e: str(e.read(Quantization.parse))),
        "kv": distinct(entries["kv"], _kv) if "kv" in entries else (UNQUANTIZED_KV,),
        "gpu": distinct(entries["gpu"], lambda e: e.read(Gpu.named).name),
        "tp": distinct(entries["tp"], lambda e: e.count(most=_MOST_TP)) if "tp" in entries else (1,),
        "engine": engines,
    }
    if "kv" in entries:
        _check_kv(entries, choices)
    if "max_sequences" in entries:
        choices["max_sequences"] = distinct(entries["max_sequences"], lambda e: e.count(most=_MOST_SEQUENCES))
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
            choices[knob] = distinct(entries[knob], _KNOB_VALUES[knob])
            for engine in having:
                knobs_of[engine] += (knob,)
    for flag, values in _settings(entries).items():
        _check_flag(flag, values.where, tuple(knobs_of))
        choices[flag] = distinct(values, Entry.setting)
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
        weights=optional(fields, "weights", Entry.string, ""),
        context_tokens=optional(fields, "context", Entry.count, 2048),
        max_sequences=optional(fields, "max_sequences", Entry.count, 8),
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
