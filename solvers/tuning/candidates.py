"""The configurations that a study may measure, and what is known of each before it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qplan.core.errors import InputError
from qplan.solvers.tuning.axes import Axis, losses
from qplan.solvers.tuning.process import Features

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

Floats = NDArray[np.float64]
Value = str | int | float | bool


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """N configurations, and M objectives; an array that is ``None`` says nothing.

    Attributes
    ----------
    ids
        (N,): unique names, for people.
    parameters
        (N,): what is suggested to a trial, unique; a conditional parameter is in some only.
    features
        (N, F): numbers that tell how alike configurations are; ``None``: the parameters themselves, numbers by their
        logarithm where all are above 0, words as categories.
    prior_mean
        (N, M): predictions in the unit of the objective, NaN where there is none.
    prior_std
        (N, M): their standard error, of the logarithm on logarithmic axes; NaN where it is not known.
    known
        (N, M): values that need no measuring, such as memory and price, else NaN.
    groups
        By objective: ``None``, or (N,) names; candidates of a group share one value, as the quality of a quantized
        model does whatever it is served on.
    cost
        (N,): of measuring, in any unit.
    group_cost
        (M,): what it costs more where the group's value was not measured yet.

    Raises
    ------
    InputError
        When there is no candidate, two are the same, or an array does not have its shape.
    """

    ids: tuple[str, ...]
    parameters: tuple[Mapping[str, Value], ...]
    features: Floats | None = None
    prior_mean: Floats | None = None
    prior_std: Floats | None = None
    known: Floats | None = None
    groups: tuple[Sequence[str] | None, ...] = ()
    cost: Floats | None = None
    group_cost: Floats | None = None
    _places: dict[frozenset[tuple[str, Value]], int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.ids)
        if not count:
            raise InputError("there is no candidate to choose from; expected at least one configuration")
        if len(set(self.ids)) < count:
            raise InputError(f"candidates: two are named {_repeated(self.ids)}; expected unique names")
        for name, array in (
            ("parameters", self.parameters),
            ("features", self.features),
            ("prior_mean", self.prior_mean),
            ("prior_std", self.prior_std),
            ("known", self.known),
            ("cost", self.cost),
            *((f"groups[{m}]", group) for m, group in enumerate(self.groups)),
        ):
            if array is not None and len(array) != count:
                raise InputError(f"candidates: {name} has {len(array)} rows; expected {count}, one a candidate")
        if self.cost is not None and not (np.asarray(self.cost) > 0).all():
            raise InputError("candidates: a measuring cost is not above 0")
        places = {_key(one): i for i, one in enumerate(self.parameters)}
        if len(places) < count:
            twice = _repeated([_key(one) for one in self.parameters])
            raise InputError(f"candidates: two have the same parameters {dict(sorted(twice))}")
        object.__setattr__(self, "_places", places)

    def check(self, axes: Sequence[Axis]) -> None:
        """Check the arrays against the objectives.

        Raises
        ------
        InputError
            One is not of as many objectives, or a value of a logarithmic axis is not above 0.
        """
        for name in ("prior_mean", "prior_std", "known"):
            array = getattr(self, name)
            if array is not None and np.shape(array)[1:] != (len(axes),):
                raise InputError(f"candidates: {name} has shape {np.shape(array)}; expected {(len(self), len(axes))}")
        for name, row in (("groups", self.groups or None), ("group_cost", self.group_cost)):
            if row is not None and len(row) != len(axes):
                raise InputError(f"candidates: {name} has {len(row)} entries; expected {len(axes)}, one an objective")
        for array in (self.prior_mean, self.known):
            if array is not None:
                losses(axes, array)

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, parameters: Mapping[str, Value]) -> int | None:
        """Return the candidate with exactly these parameters, if there is one."""
        return self._places.get(_key(parameters))

    def place(self, name: str | None) -> int | None:
        """Return the number of the candidate with this id, if there is one."""
        return self.ids.index(name) if name in self.ids else None

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The study's search space: every parameter with all values that some candidate has."""
        from optuna.distributions import CategoricalDistribution

        names = dict.fromkeys(name for one in self.parameters for name in one)
        return {name: CategoricalDistribution(self._choices(name)) for name in names}

    def suggest(self, trial: Trial) -> int:
        """Suggest its parameters to a trial and return which candidate that makes.

        Raises
        ------
        InputError
            When the trial's parameters were fixed to something that is no candidate.
        """
        left = list(range(len(self)))
        found: dict[str, Value] = {}
        while name := self._next(left, found):
            value: Any = trial.suggest_categorical(name, self._choices(name))
            found[name] = value
            left = [i for i in left if name in self.parameters[i] and _same(self.parameters[i][name], found[name])]
            if not left:
                raise InputError(f"trial {trial.number}: no candidate has the parameters {found}")
        return left[0]

    def encoded(self) -> Features:
        """Return what tells candidates apart, scaled: (N, F)."""
        if self.features is not None:
            columns = [(np.asarray(column, dtype=float), False) for column in np.asarray(self.features).T]
        else:
            columns = [self._encode(name) for name in self.distributions]
        columns = [(column, words) for column, words in columns if np.ptp(column) > 0]
        values = (
            np.stack(
                [column if words else (column - column.min()) / np.ptp(column) for column, words in columns], axis=1
            )
            if columns
            else np.zeros((len(self), 0))
        )
        return Features(values, np.array([words for _, words in columns], dtype=bool))

    def _encode(self, name: str) -> tuple[Floats, bool]:
        values: list[Any] = [one.get(name) for one in self.parameters]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            numbers = np.array(values, dtype=float)
            return (np.log2(numbers) if (numbers > 0).all() else numbers), False
        codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
        return np.array([codes[value] for value in values], dtype=float), True

    def _choices(self, name: str) -> tuple[Value, ...]:
        found = dict.fromkeys(one[name] for one in self.parameters if name in one)
        numbers = all(isinstance(value, int | float) for value in found)
        return tuple(sorted(found)) if numbers else tuple(found)

    def _next(self, left: Sequence[int], found: Mapping[str, Value]) -> str | None:
        """Return a parameter that all that are left have and that is not found yet."""
        if len(left) == 1:
            return next((name for name in self.parameters[left[0]] if name not in found), None)
        common = set.intersection(*(set(self.parameters[i]) for i in left)) - set(found)
        return next((name for name in self.parameters[left[0]] if name in common), None)


def _key(parameters: Mapping[str, Value]) -> frozenset[tuple[str, Value]]:
    return frozenset(parameters.items())


def _repeated(many: Sequence[Any]) -> Any:
    return next(one for i, one in enumerate(many) if one in many[:i])


def _same(one: Value, other: Value) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
