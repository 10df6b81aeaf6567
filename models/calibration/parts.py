"""A prediction as a sum of parts, and the contract of a prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Floats, Ints

RowT = TypeVar("RowT")
ContraRowT = TypeVar("ContraRowT", contravariant=True)


@dataclass(frozen=True, slots=True)
class Parts:
    """A metric of N rows, predicted as a sum of K parts.

    Attributes
    ----------
    names : K
        What each part is; parts of the same name mean the same in every prior.
    seconds : (N, K)
        Never negative.
    own : (K,)
        Coefficient of each part in the prior's own prediction; 0 for an effect that the prior leaves out.
    deviation : (K,)
        How far the coefficient of a real engine may be from `own` before anything was measured, a standard deviation.
    """

    names: tuple[str, ...]
    seconds: Floats
    own: Floats
    deviation: Floats

    def __post_init__(self) -> None:
        """Check the shapes and that no part is negative; raise :class:`InputError`."""
        columns = len(self.names)
        if self.seconds.ndim != 2 or any(
            n != columns for n in (self.seconds.shape[1], len(self.own), len(self.deviation))
        ):
            raise InputError(
                f"parts of a prediction: {columns} names, seconds of shape {self.seconds.shape}, {len(self.own)} own "
                f"coefficients and {len(self.deviation)} deviations; expected one of each per name"
            )
        if (self.seconds < 0).any() or (self.own < 0).any() or (self.deviation <= 0).any():
            raise InputError(
                "parts of a prediction: seconds and own coefficients must be 0 or more, deviations positive"
            )

    @classmethod
    def whole(cls, seconds: Floats) -> Parts:
        """Make the single part of a prediction of which nothing more is known; real ones are taken to be within 2x."""
        return cls(("whole",), np.asarray(seconds, dtype=float)[:, None], np.ones(1), np.ones(1))

    def take(self, index: Ints) -> Parts:
        """Return the parts of the rows at `index` alone."""
        return replace(self, seconds=self.seconds[index])

    @property
    def total(self) -> Floats:
        """The prediction, (N,) seconds; infinite where the prior is saturated."""
        counts = self.own > 0  # a saturated row is infinite in every part, and 0 times that is not a number
        total: Floats = self.seconds[:, counts] @ self.own[counts]
        return total


class Prior(Protocol[ContraRowT]):
    """What is to be corrected: from rows (deployments at a load, of any type) to parts of each metric."""

    def __call__(self, rows: Sequence[ContraRowT]) -> Mapping[str, Parts]:
        """Return the parts by metric, ``ttft``, ``tpot`` ..., in the order of `rows`."""
        ...
