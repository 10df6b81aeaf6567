"""Serving engines: who answers requests, chosen by name.

The adapters that ship are known here. Any installed package can bring another: it names an
:class:`~qplan.measure.engines.contract.Engine` class as an entry point of the group ``qplan.engines``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from qplan.core.errors import InputError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from qplan.measure.engines.contract import Engine

ENTRY_POINT_GROUP = "qplan.engines"

_SHIPPED = {
    "llamacpp": ("qplan.measure.engines.llamacpp", "LlamaCpp"),
    "vllm": ("qplan.measure.engines.vllm", "Vllm"),
    "trtllm": ("qplan.measure.engines.trtllm", "TrtLlm"),
    "sglang": ("qplan.measure.engines.sglang", "SgLang"),
    "transformers": ("qplan.measure.engines.transformers_serve", "TransformersServe"),
    "remote": ("qplan.measure.engines.remote", "Remote"),
}


def open_engine(name: str, where: str = "engine") -> Engine:
    """Return the adapter called `name`; `where` names the flag or file and line in an error.

    Raises
    ------
    InputError
        There is no such engine.
    """
    key = name.strip().casefold()
    if key in _SHIPPED:
        module, adapter = _SHIPPED[key]
        return cast("Engine", getattr(import_module(module), adapter)())
    for point in _entry_points():
        if point.name == key:
            return cast("Engine", point.load()())
    choices = engine_names()
    raise InputError(f"{where}: unknown engine '{name}'; expected one of {', '.join(choices)}{nearest(name, choices)}")


def engine_names() -> list[str]:
    """Return the names of every adapter, the shipped ones first."""
    return [*_SHIPPED, *(point.name for point in _entry_points())]


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=ENTRY_POINT_GROUP))
