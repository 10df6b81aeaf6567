"""The axes of the objective space: what is traded, and the space in which fronts are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qplan.core.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """One objective.

    Attributes
    ----------
    maximize
        Whether more is better.
    log
        Whether ratios matter, as for latency, energy and price: the axis is modelled, and volumes are measured, in
        its logarithm.
    reference
        Worst value of interest, in the objective's own unit; ``None``: a little beyond the worst seen or predicted.
    """

    name: str
    maximize: bool = False
    log: bool = True
    reference: float | None = None

    def __post_init__(self) -> None:
        if self.log and self.reference is not None and self.reference <= 0:
            raise InputError(f"objective {self.name}: reference is {self.reference:g}; expected a value above 0")

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Direction of the study's objective, as Optuna names it."""
        return "maximize" if self.maximize else "minimize"

    def losses(self, values: ArrayLike) -> Floats:
        """Turn values of the objective into losses, which are minimised; NaN stays NaN.

        Raises
        ------
        InputError
            When the axis is logarithmic and a value is not above 0.
        """
        array = np.asarray(values, dtype=float)
        if self.log:
            if (array <= 0).any():
                raise InputError(
                    f"objective {self.name}: {array[array <= 0].flat[0]:g} is not above 0, as a logarithmic axis needs"
                )
            array = np.log(array)
        return -array if self.maximize else array

    def values(self, losses: ArrayLike) -> Floats:
        """Turn losses back into values of the objective."""
        array = np.asarray(losses, dtype=float)
        array = -array if self.maximize else array
        return np.exp(array) if self.log else array


def losses(axes: Sequence[Axis], values: ArrayLike) -> Floats:
    """Turn values, (..., M), into losses of the same shape."""
    array = np.asarray(values, dtype=float)
    return np.stack([axis.losses(array[..., m]) for m, axis in enumerate(axes)], axis=-1)
