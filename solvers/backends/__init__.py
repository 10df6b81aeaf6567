"""Solver backends: who minimises a matrix program, chosen by name.

The two that ship, ``highs`` and ``pulp:SOLVER``, are known here. Any installed package can bring another: it
names a :class:`~qplan.solvers.backends.contract.BackendFactory` as an entry point of the group
``qplan.solver_backends``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from qplan.core.errors import InputError, nearest
from qplan.solvers.backends.contract import (
    OPTIMAL_GAP,
    BackendFactory,
    MatrixProgram,
    Solution,
    SolverBackend,
    Status,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "OPTIMAL_GAP",
    "BackendFactory",
    "MatrixProgram",
    "Solution",
    "SolverBackend",
    "Status",
    "installed_backends",
    "open_backend",
]

ENTRY_POINT_GROUP = "qplan.solver_backends"

#: Not entry points themselves: reading every installed package's metadata takes longer than most plans.
_SHIPPED = {
    "highs": ("qplan.solvers.backends.highs", "HighsBackend"),
    "pulp": ("qplan.solvers.backends.pulp", "PulpBackend"),
}


def open_backend(name: str) -> SolverBackend:
    """Open the backend called `name`, such as ``highs`` or ``pulp:cbc``.

    Raises
    ------
    InputError
        If there is no such backend, or it is not installed; names those that are.
    """
    family, _, variant = name.partition(":")
    if family in _SHIPPED:
        return _shipped(family)(variant)
    for point in _entry_points():
        if point.name == family:
            return cast("BackendFactory", point.load())(variant)
    choices = installed_backends()
    raise InputError(f"unknown solver '{name}'; installed here: {', '.join(choices)}{nearest(name, choices)}")


def installed_backends() -> list[str]:
    """Return the names of the backends that would open here, the shipped ones first."""
    others = [cast("BackendFactory", point.load()) for point in _entry_points()]
    factories = [*map(_shipped, _SHIPPED), *others]
    return [name for factory in factories for name in factory.installed()]


def _shipped(family: str) -> BackendFactory:
    module, factory = _SHIPPED[family]
    return cast("BackendFactory", getattr(import_module(module), factory))


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=ENTRY_POINT_GROUP))
