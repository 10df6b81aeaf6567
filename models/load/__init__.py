"""Surrogates of measured observations over load, chosen by name.

The ones that ship are known here. Any installed package can bring another: it names a class that keeps the contract
of :mod:`qplan.models.load.contract` as an entry point of the group ``qplan.surrogates``.

===================== ===================================================================================
``pooled-process``    Gaussian process that pools configurations: the most accurate, up to a few thousand rows
``pooled-curves``     power laws with knees, shrunk to what configurations share: any number of rows
``monotone-boosting`` gradient boosting of physical features and load, blind to which configuration it is
``selected``          whichever of these does best on loads, or configurations, held out of the data it is given
===================== ===================================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from qplan.core.errors import InputError, nearest
from qplan.models.load.monotone import RISING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from qplan.models.load.contract import LoadSurrogate

ENTRY_POINT_GROUP = "qplan.surrogates"

_SHIPPED = {
    "pooled-process": ("qplan.models.load.process", "PooledProcess"),
    "pooled-curves": ("qplan.models.load.curves", "PooledCurves"),
    "monotone-boosting": ("qplan.models.load.boosting", "MonotoneBoosting"),
    "selected": ("qplan.models.load.selection", "SelectedSurrogate"),
}


def open_surrogate(
    name: str,
    load: int = 0,
    groups: tuple[int, ...] = (1,),
    elasticity: tuple[float, float] = RISING,
    where: str = "surrogate",
) -> LoadSurrogate:
    """Return a surrogate, not yet fitted.

    Parameters
    ----------
    name
        One of :func:`surrogate_names`.
    load, groups, elasticity
        Roles of columns, as in :class:`~qplan.models.load.contract.LoadSurrogate`.
    where
        Names the flag, or file and line, in an error.

    Raises
    ------
    InputError
        There is no such surrogate, or scikit-learn is not installed.
    """
    key = name.strip().casefold()
    if key in _SHIPPED:
        module, kind = _SHIPPED[key]
        try:
            surrogate = getattr(import_module(module), kind)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{where}: '{key}' needs {error.name}, which is not installed: pip install 'qplan[models]'"
            ) from None
        return cast("LoadSurrogate", surrogate(load=load, groups=groups, elasticity=elasticity))
    for point in _entry_points():
        if point.name == key:
            return cast("LoadSurrogate", point.load()(load=load, groups=groups, elasticity=elasticity))
    choices = surrogate_names()
    raise InputError(
        f"{where}: unknown surrogate '{name}'; expected one of {', '.join(choices)}{nearest(name, choices)}"
    )


def surrogate_names() -> list[str]:
    """Return the names of every surrogate, the shipped ones first."""
    return [*_SHIPPED, *(point.name for point in _entry_points())]


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=ENTRY_POINT_GROUP))
