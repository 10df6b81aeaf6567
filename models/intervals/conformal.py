"""Conformal intervals around any regressor of positive targets, for the two questions that users ask.

A *configuration* is a group of rows: a deployment under a workload, measured at several loads. *A new load inside a
known configuration* and *a configuration never seen* have errors that differ by factors, so each question is calibrated
on errors made when answering just that: from a model that had not seen the load, and from one that had not seen the
configuration. Which one a query asks is read off its codes. A configuration can be new in several ways, as a workload
on a known deployment, or with a model that nobody measured: each can be a question of its own (`levels`).

Errors are log ratios of truth to prediction, divided by the size that is expected from how far the query lies from the
data (:mod:`qplan.models.intervals.difficulty`) and, inside a known configuration, from how noisy its other rows are and
how unsure the regressor is itself, where it has a ``predict_std``. That expectation is fitted on other folds than the
errors that it divides (normalised conformal prediction: Papadopoulos et al. 2008; Lei et al. 2018, section 5.2).

Out-of-fold errors come from models of fewer rows than the one that answers, so intervals lean to the wide side. Around
the model of all rows they have no guarantee, only the coverage that held-out data show. CV+ (Barber et al. 2021) has
one, of 1 - 2 alpha, and would answer from, and save, every fold's model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone

from qplan.core.errors import InputError
from qplan.models.intervals.bounds import Bounds
from qplan.models.intervals.difficulty import Axes, inside, outside
from qplan.models.intervals.scores import Calibration, noise
from qplan.models.load.contract import codes
from qplan.models.steptimes import Bools, Floats, Ints

_WIDEST = float(np.log(1000.0))  # a wider interval, to either side, says nothing: there is none
_ALIKE = 0.05  # standard deviations of a column that two repeats may be apart


class ConformalRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A regressor of positive targets that knows how sure it is.

    Parameters
    ----------
    estimator
        Regressor that answers for configurations in the data.
    unseen
        Regressor that answers for others; ``None``: the same.
    groups
        Columns of X that hold codes of nested groups, coarse to fine, the last the configuration, as the surrogates of
        :mod:`qplan.models.load` take them. A code that `fit` never saw is a configuration never seen.
    folds
        How many parts the rows of a configuration, and the configurations, are dealt into for out-of-fold errors.
    seed
        Of the dealing.
    levels
        Which of `groups`, coarse to fine, the last among them, are held out whole for errors of what is new at that
        level; ``None``: the configuration alone, whatever else is new with it.

    Attributes
    ----------
    configurations_ : (G,)
        Codes of the configurations seen.
    known_, unseen_
        The fitted regressors.
    known_calibration_
        Out-of-fold errors inside configurations; ``None`` where no configuration has two rows to tell them from.
    unseen_calibrations_
        Those of new groups, one for each level; ``None`` where there are no two groups to tell them from.
    """

    def __init__(
        self,
        estimator: Any,
        unseen: Any = None,
        *,
        groups: tuple[int, ...] = (1,),
        folds: int = 10,
        seed: int = 0,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        self.estimator = estimator
        self.unseen = unseen
        self.groups = groups
        self.folds = folds
        self.seed = seed
        self.levels = levels

    def fit(self, X: Floats, y: Floats) -> Self:
        """Fit both regressors to rows X (N, F) and targets y (N,), and calibrate both on rows held out of them.

        Raises
        ------
        InputError
            A shape or a value is not what is expected.
        """
        X, y = np.asarray(X, dtype=float), np.asarray(y, dtype=float)
        if self.folds < 2:
            raise InputError(f"folds={self.folds}; expected 2 or more")
        self._check(X)
        _check_targets(X, y)
        self.configurations_, own = np.unique(X[:, self.groups[-1]], return_inverse=True)
        self.known_ = clone(self.estimator).fit(X, y)
        self.unseen_ = self.known_ if self.unseen is None else clone(self.unseen).fit(X, y)
        self.axes_ = Axes.of(self._features(X))
        self.near_, self.own_ = self.axes_.scaled(self._features(X)), own
        rng = np.random.default_rng(self.seed)
        self._calibrate_known(X, y, own, _deal_points(own, self.near_, self.folds, rng))
        self.seen_ = [np.unique(X[:, level]) for level in self._levels()]
        self.unseen_calibrations_ = [self._calibrate_unseen(X, y, own, level, rng) for level in self._levels()]
        return self

    def predict(self, X: Floats) -> Floats:
        """Return predictions, (N,), for rows X (N, F)."""
        X = np.asarray(X, dtype=float)
        return self._value(X, self._place(X) >= 0)

    def bounds(self, X: Floats, coverage: float = 0.9) -> Bounds:
        """Return predictions for rows X (N, F) with intervals that a share `coverage` of the truths lies in.

        Raises
        ------
        InputError
            The coverage is no share.
        """
        return self.bounds_at(X, (coverage,))[0]

    def bounds_at(self, X: Floats, coverages: Sequence[float]) -> list[Bounds]:
        """Return :meth:`bounds` at several coverages, the predictions made once."""
        X = np.asarray(X, dtype=float)
        place = self._place(X)
        value, beyond = self._value(X, place >= 0), np.full(len(X), True)
        reach = np.full((len(coverages), len(X)), np.inf)
        for calibration, asked, difficulty, guess in self._questions(X, place):
            for n, coverage in enumerate(coverages):
                found = calibration.both_sides(difficulty, _share(coverage))
                reach[n, asked] = np.where(found > _WIDEST, np.inf, found)
            beyond[asked] = calibration.beyond(difficulty) | guess
        return [
            Bounds(value, value * np.exp(-one), value * np.exp(one), place >= 0, beyond, coverage)
            for one, coverage in zip(reach, coverages, strict=True)
        ]

    def upper_bound(self, X: Floats, coverage: float = 0.9) -> Floats:
        """Return what a share `coverage` of the truths stays below, (N,): the side that an SLO asks for.

        Raises
        ------
        InputError
            The coverage is no share.
        """
        X = np.asarray(X, dtype=float)
        place = self._place(X)
        value, reach = self._value(X, place >= 0), np.full(len(X), np.inf)
        for calibration, asked, difficulty, _ in self._questions(X, place):
            reach[asked] = calibration.above(difficulty, _share(coverage))
        bound: Floats = value * np.exp(reach)
        return bound

    def _value(self, X: Floats, known: Bools) -> Floats:
        value = np.empty(len(X))
        for regressor, asked in ((self.known_, known), (self.unseen_, ~known)):
            if asked.any():
                value[asked] = regressor.predict(X[asked])
        return value

    def _questions(self, X: Floats, place: Ints) -> Iterator[tuple[Calibration, Bools, Floats, bool]]:
        """Give each question's calibration, the queries (N,) that ask it, their difficulty (M, D), and if it guesses.

        It does where what is new was never held out: the errors are then those of what is new at a finer level.
        """
        Z, known = self.axes_.scaled(self._features(X)), place >= 0
        if self.known_calibration_ is not None and known.any():
            far = inside(self.near_, self.own_, Z[known], place[known])
            difficulty = np.column_stack([far, self.noise_[place[known]], _doubt(self.known_, X[known])])
            yield self.known_calibration_, known, difficulty, False
        left = ~known
        for n, (level, seen) in enumerate(zip(self._levels(), self.seen_, strict=True)):
            asked = left if level == self.groups[-1] else left & (codes(X[:, level], seen) < 0)
            left = left & ~asked
            calibration = next((one for one in self.unseen_calibrations_[n:] if one is not None), None)
            if asked.any() and calibration is not None:
                guess = self.unseen_calibrations_[n] is None
                yield calibration, asked, outside(self.near_, Z[asked]), guess

    def _levels(self) -> tuple[int, ...]:
        """Return the columns whose groups are held out whole, coarse to fine."""
        return (self.groups[-1],) if self.levels is None else self.levels

    def _features(self, X: Floats) -> Floats:
        """Return the columns that are quantities."""
        return np.delete(X, self.groups, axis=1)

    def _place(self, X: Floats) -> Ints:
        """Return the place of each row's configuration among those seen, (N,); -1 for one never seen."""
        self._check(X)
        return codes(X[:, self.groups[-1]], self.configurations_)

    def _check(self, X: Floats) -> None:
        if X.ndim != 2 or not len(X) or max(self.groups) >= X.shape[1]:
            raise InputError(f"X is of shape {X.shape}; expected rows of more than {max(self.groups)} columns")
        if not np.isfinite(X).all():
            row, column = map(int, np.argwhere(~np.isfinite(X))[0])
            raise InputError(f"X has no finite value in row {row}, column {column}")

    def _calibrate_known(self, X: Floats, y: Floats, own: Ints, folds: Ints) -> None:
        self.noise_, self.known_calibration_ = np.zeros(len(self.configurations_)), None
        rows = np.flatnonzero(folds >= 0)
        if len(np.unique(folds[rows])) < 2:
            return
        errors, far, doubt = self._held_out(X, y, own, folds, self.estimator)
        self.noise_, others = noise(errors[rows], own[rows], len(self.configurations_))
        difficulty = np.column_stack([far[rows], others, doubt[rows]])
        self.known_calibration_ = Calibration.of(errors[rows], difficulty, folds[rows], None)

    def _calibrate_unseen(
        self, X: Floats, y: Floats, own: Ints, level: int, rng: np.random.Generator
    ) -> Calibration | None:
        members = np.unique(X[:, level], return_inverse=True)[1]
        folds = _deal_groups(members, self.folds, rng)
        if len(np.unique(folds)) < 2:
            return None
        estimator = self.estimator if self.unseen is None else self.unseen
        # The regressor's own doubt about a new configuration says nothing that the distance has not said.
        errors, far, _ = self._held_out(X, y, own, folds, estimator)
        return Calibration.of(errors, far, folds, members)

    def _held_out(self, X: Floats, y: Floats, own: Ints, folds: Ints, estimator: Any) -> tuple[Floats, Floats, Floats]:
        """Return log errors (N,), distances (N, 2) and the regressor's own doubt (N, 0 or 1), all out of fold."""
        features = self._features(X)
        errors, far = np.empty(len(y)), np.empty((len(y), 2))
        doubt = np.zeros((len(y), 1 if hasattr(estimator, "predict_std") else 0))
        for fold in np.unique(folds[folds >= 0]):
            held, kept = folds == fold, folds != fold
            regressor = clone(estimator).fit(X[kept], y[kept])
            errors[held] = _log_ratio(y[held], regressor.predict(X[held]))
            axes = Axes.of(features[kept])
            near, asked = axes.scaled(features[kept]), axes.scaled(features[held])
            known = np.isin(own[held], own[kept]).all()
            far[held] = inside(near, own[kept], asked, own[held]) if known else outside(near, asked)
            doubt[held] = _doubt(regressor, X[held])
        return errors, far, doubt


def _share(coverage: float) -> float:
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage:g}; expected a share between 0 and 1, as 0.9")
    return coverage


def _log_ratio(truth: Floats, predicted: Floats) -> Floats:
    if not (predicted > 0).all():
        raise InputError(f"the regressor predicted {predicted.min():g}; expected one that predicts positive numbers")
    ratio: Floats = np.log(truth / predicted)
    return ratio


def _doubt(regressor: Any, X: Floats) -> Floats:
    """Return the logarithm of the regressor's own standard deviation, (N, 1); (N, 0) where it has none."""
    if not hasattr(regressor, "predict_std"):
        return np.empty((len(X), 0))
    doubt: Floats = np.log(regressor.predict_std(X))[:, None]
    return doubt


def _check_targets(X: Floats, y: Floats) -> None:
    if y.shape != (len(X),):
        raise InputError(f"y is of shape {y.shape}; X of {len(X)} rows expects ({len(X)},)")
    wrong = np.flatnonzero(~(np.isfinite(y) & (y > 0)))
    if len(wrong):
        raise InputError(f"y is {y[wrong[0]]:g} in row {wrong[0]}; expected a positive number")


def _deal_points(own: Ints, Z: Floats, folds: int, rng: np.random.Generator) -> Ints:
    """Deal the points of each group over the folds; -1 for the only point of a group, which nothing would be left of.

    Scaled rows `Z`, (N, F), that are alike are repeats of one point. They stay together, since a repeat says what
    nobody knows of a new point.
    """
    dealt = np.full(len(own), -1)
    alike = (Z / _ALIKE).round()
    for group in range(own.max() + 1):
        rows = np.flatnonzero(own == group)
        point = np.unique(alike[rows], axis=0, return_inverse=True)[1].ravel()
        points = int(point.max()) + 1
        if points > 1:
            fold = np.empty(points, dtype=np.intp)
            fold[rng.permutation(points)] = (rng.integers(folds) + np.arange(points)) % folds
            dealt[rows] = fold[point]
    return dealt


def _deal_groups(own: Ints, folds: int, rng: np.random.Generator) -> Ints:
    """Deal whole groups over the folds."""
    groups = own.max() + 1
    dealt: Ints = (rng.permutation(groups) % folds)[own]
    return dealt
