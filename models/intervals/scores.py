"""Scaled out-of-fold errors, and the intervals that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.intervals.quantile import conformal_quantile, group_weights
from qplan.models.intervals.scale import ErrorScale
from qplan.models.steptimes import Bools, Floats, Ints

DISTANCES = 2  # the first columns of a difficulty
_USUAL = 0.95  # share of held-out rows whose distance counts as usual
_OWN_PRIOR = 3.0  # errors of other configurations that count as much as one's own, in how noisy a configuration is


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a regressor got wrong on rows that it had not seen.

    Attributes
    ----------
    scores : (N,)
        Log ratio of truth to prediction over its expected size.
    groups : (N,)
        Configuration of each; ``None`` where cases and not configurations are exchangeable.
    scale
        Expected size by difficulty, for new queries.
    usual : (DISTANCES,)
        How far from the data nearly all of the rows lay.
    """

    scores: Floats
    groups: Ints | None
    scale: ErrorScale
    usual: Floats

    @classmethod
    def of(cls, errors: Floats, difficulty: Floats, folds: Ints, groups: Ints | None) -> Calibration:
        """Scale each fold's errors by what the other folds lead to expect.

        Parameters
        ----------
        errors, folds : (N,)
            Log ratio of truth to prediction, and the fold that it was held out with; two folds at least.
        difficulty : (N, D)
        groups : (N,), optional
            Configurations; with them each counts the same, however many rows it has.
        """
        weights = np.ones(len(errors)) if groups is None else group_weights(groups)
        scores = np.empty(len(errors))
        for fold in np.unique(folds):
            held, kept = folds == fold, folds != fold
            scale = ErrorScale.fit(errors[kept], difficulty[kept], weights[kept])
            scores[held] = errors[held] / scale.at(difficulty[held])
        usual = np.quantile(difficulty[:, :DISTANCES], _USUAL, axis=0, method="higher")
        return cls(scores, groups, ErrorScale.fit(errors, difficulty, weights), usual)

    def both_sides(self, difficulty: Floats, coverage: float) -> Floats:
        """Return how far, (N,), the log ratio reaches on either side of 0."""
        return conformal_quantile(np.abs(self.scores), coverage, self.groups) * self.scale.at(difficulty)

    def above(self, difficulty: Floats, coverage: float) -> Floats:
        """Return what, (N,), the log ratio stays below."""
        return conformal_quantile(self.scores, coverage, self.groups) * self.scale.at(difficulty)

    def beyond(self, difficulty: Floats) -> Bools:
        """Return which queries, (N,), lie farther from the data than nearly all rows that the errors are known of."""
        return np.asarray((difficulty[:, :DISTANCES] > self.usual + 1e-9).any(axis=1))


def noise(errors: Floats, own: Ints, groups: int) -> tuple[Floats, Floats]:
    """Return how noisy each group is, (G,), and what the *other* rows of a row's group say of that, (N,).

    Both are logarithms of mean absolute errors over that of all rows. A group's mean is drawn towards the mean of all,
    by the weight of `_OWN_PRIOR` rows.

    Parameters
    ----------
    errors, own : (N,)
        Log ratios of truth to prediction, and the group of each, below `groups`.
    """
    size = np.abs(errors) + 1e-9
    total, count = np.bincount(own, size, groups), np.bincount(own, minlength=groups)
    of_all = size.mean()
    by_group = (total + _OWN_PRIOR * of_all) / (count + _OWN_PRIOR)
    others = (total[own] - size + _OWN_PRIOR * of_all) / (count[own] - 1 + _OWN_PRIOR)
    return np.log(by_group / of_all), np.log(others / of_all)
