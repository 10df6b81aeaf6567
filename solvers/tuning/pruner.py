"""Abandoning a candidate while its load points are measured: when they already rule it out of the front.

Optuna's pruners compare intermediate values of one objective. Here a load point bounds an objective, as a rate that
failed bounds the saturation rate, and the question is whether the candidate can still be on the front.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.solvers.tuning.acquisition import escape_probability
from qplan.solvers.tuning.hypervolume import free_boxes

if TYPE_CHECKING:
    from optuna import Study

    from qplan.solvers.tuning.sampler import FrontSampler


class FrontPruner:
    """Tell whether a candidate that is being measured can still be on the front.

    Parameters
    ----------
    confidence
        Probability of being off the front from which a candidate is abandoned.
    """

    def __init__(self, sampler: FrontSampler, study: Study, confidence: float = 0.95) -> None:
        self._sampler = sampler
        self._study = study
        self._confidence = confidence

    def probability(self, index: int, best: Mapping[str, float]) -> float:
        """Return the probability that no measured point dominates a candidate.

        Parameters
        ----------
        best
            By objective: the best value that is still possible, in the objective's unit.

        Raises
        ------
        InputError
            When there is no objective of a name.
        """
        axes = self._sampler.axes
        names = [axis.name for axis in axes]
        for name in best:
            if name not in names:
                raise InputError(
                    f"unknown objective '{name}'; expected one of {', '.join(names)}{nearest(name, names)}"
                )
        beliefs = self._sampler.beliefs(self._study)
        bound = np.array([[float(one.losses(best[one.name])) if one.name in best else -np.inf for one in axes]])
        own = np.array([index])
        held = [belief.take(own) for belief in beliefs.doubted()]
        # Without an end: what lies beyond the reference of the hypervolume can still be on the front.
        free = free_boxes(beliefs.evidence.measured, np.full(len(axes), np.inf))
        return float(escape_probability(held, free, bound)[0])

    def rules_out(self, index: int, best: Mapping[str, float]) -> str | None:
        """Say why a candidate is abandoned, or return ``None``: go on."""
        probability = self.probability(index, best)
        if probability > 1 - self._confidence:
            return None
        bounds = ", ".join(f"{name} {value:.4g}" for name, value in best.items())
        return f"at best {bounds}: on the front with a probability of {probability:.1%} only"
