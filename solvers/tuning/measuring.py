"""What a study is handed to measure with, and what it owes.

The loop never measures itself: it calls a :class:`Measure`, which looks a configuration up in a finished table
(:mod:`qplan.solvers.tuning.tables`), starts an engine (:mod:`qplan.solvers.tuning.engines`), or is the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from qplan.solvers.tuning.objectives import Row
from qplan.solvers.tuning.space import Configuration


class CannotRun(Exception):  # noqa: N818  (an answer, which the study keeps)
    """The configuration cannot be had: the engine does not start, or the table has nothing of it.

    Attributes
    ----------
    measured
        Values that are known of it nevertheless, by objective.
    """

    def __init__(self, reason: str, measured: Mapping[str, float] | None = None) -> None:
        super().__init__(reason)
        self.measured: Mapping[str, float] = measured or {}


class Abandoned(Exception):  # noqa: N818
    """What was seen so far rules the configuration out of the front.

    Attributes
    ----------
    measured
        Values that are known of it nevertheless, by objective.
    at_best
        By objective of which only a bound is known: the best that it can be.
    """

    def __init__(self, reason: str, measured: Mapping[str, float], at_best: Mapping[str, float] | None = None) -> None:
        super().__init__(reason)
        self.measured = measured
        self.at_best: Mapping[str, float] = at_best or {}


class Halted(Exception):  # noqa: N818
    """The user asked for an end; the configuration is measured another time."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What measuring a configuration gave.

    Attributes
    ----------
    rows
        Its observations, of which objectives are read.
    seconds
        How long its GPUs were taken.
    """

    rows: tuple[Row, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a measure function asks while it works.

    Attributes
    ----------
    stopping
        Whether the user asked for an end; asked often.
    progress
        Told in a few words what is being done.
    rules_out
        Given the best value that objectives can still reach, says why the configuration cannot enter the front any
        more, or ``None``.
    """

    stopping: Callable[[], bool]
    progress: Callable[[str], None]
    rules_out: Callable[[Mapping[str, float]], str | None]


class Measure(Protocol):
    """Measures a configuration."""

    def __call__(self, one: Configuration, known: Mapping[str, float], hooks: Hooks) -> Measured:
        """Measure `one`, and return its observations.

        Parameters
        ----------
        known
            Values that another configuration has shared, by objective: they need not be measured.

        Raises
        ------
        CannotRun, Abandoned, Halted
        """
