"""The errors that qplan raises on purpose.

::

    QplanError
    ├── InputError        what the user typed or handed over: exit 2
    ├── InfeasibleError   an answer, not a bug: no plan meets the ask: exit 3
    ├── MeasurementError  an engine, the load client or an energy counter failed: exit 4
    │   └── EngineError   an engine failed; carries its last lines (qplan.measure.engines.contract)
    └── StoreError        the profile store or a pack cannot be read or written: exit 2

The command line prints a :class:`QplanError` as one line and exits with its ``exit_code``. Anything else
that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QplanError(Exception):
    """Base of every error that qplan raises on purpose."""

    exit_code = 1


class InputError(QplanError):
    """What the user typed or handed over is wrong.

    The message says what was wrong, where (flag, or file and line), what was expected and, where one
    exists, the nearest valid choice.
    """

    exit_code = 2


class InfeasibleError(QplanError):
    """No plan meets the ask.

    Parameters
    ----------
    message
        Which constraint binds, in one sentence.
    constraint
        Machine-readable name of the binding constraint: ``memory``, ``slo``, ``quality``, ``inventory``.
    nearest
        The nearest changes that would make it feasible, each an instruction that names its flag.
    """

    exit_code = 3

    def __init__(self, message: str, *, constraint: str, nearest: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.constraint = constraint
        self.nearest = tuple(nearest)


class MeasurementError(QplanError):
    """An engine, the load client or an energy counter failed."""

    exit_code = 4


class StoreError(QplanError):
    """The profile store or a pack cannot be read or written."""

    exit_code = 2


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice closest to `word`, or ``""`` when none is close."""
    by_fold = {choice.casefold(): choice for choice in choices}
    match = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.5)
    return f"; did you mean '{by_fold[match[0]]}'?" if match else ""
