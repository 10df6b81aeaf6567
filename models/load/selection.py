"""The surrogate that does best on what is held out of its own data.

Which one is best depends on what will be asked: a load between or beyond those measured of a known configuration, or
a configuration that nobody measured. Each question is put to every candidate, on folds of the training rows alone,
so that an outer fold that judges the choice has no part in it (Cawley & Talbot 2010). What a candidate learns slowly
and from all rows alike, as the two dozen variances and lengths of a process, it learns once, not fold by fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from qplan.core.errors import InputError
from qplan.models.load import open_surrogate
from qplan.models.load.contract import LoadSurrogate
from qplan.models.load.monotone import RISING
from qplan.models.steptimes import Floats, Ints

CANDIDATES = ("pooled-process", "pooled-curves", "monotone-boosting")
QUESTIONS = ("load", "configuration")
FOLDS = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """Which surrogate is to answer a question.

    Attributes
    ----------
    name
        The name chosen.
    surrogate
        Not fitted; it keeps what it has learned slowly.
    scores
        Mean absolute error of ln(y) on held-out rows by name; candidates that refused the data are missing.
    """

    name: str
    surrogate: LoadSurrogate
    scores: Mapping[str, float]


def choose(
    X: Floats,
    y: Floats,
    roles: tuple[int, tuple[int, ...]],
    elasticity: tuple[float, float],
    question: str,
    candidates: tuple[str, ...] = CANDIDATES,
    seed: int = 0,
) -> Choice:
    """Choose the surrogate that predicts held-out rows of X (N, F), y (N,) best.

    Parameters
    ----------
    roles
        Columns of X: the load, and the nested groups.
    question
        ``load``: one load in `FOLDS` of each configuration is held out at a time. ``configuration``: whole groups of
        the coarsest kind are of which there are two: models, or else what one model was served in.

    Raises
    ------
    InputError
        There is no such question, no two groups to hold out, or no candidate takes the rows.
    """
    if question not in QUESTIONS:
        raise InputError(f"question='{question}'; expected one of {', '.join(QUESTIONS)}")
    load, groups = roles
    folds = _folds(X, load, groups, question, seed)
    scores: dict[str, float] = {}
    tuned: dict[str, LoadSurrogate] = {}
    refusals = []
    for name in candidates:
        try:
            one = open_surrogate(name, load, groups, elasticity).tuned(X, y)
            scores[name] = _score(one, X, y, folds)
            tuned[name] = one
        except InputError as error:
            refusals.append(f"{name}: {error}")
    if not scores:
        raise InputError(f"no candidate takes these rows: {'; '.join(refusals) or 'none was named'}")
    best = min(scores, key=lambda name: scores[name])
    return Choice(best, tuned[best], scores)


class SelectedSurrogate(LoadSurrogate):
    """The best of several surrogates at one question, refitted to all rows.

    Parameters
    ----------
    load, groups, elasticity
        As in :class:`~qplan.models.load.contract.LoadSurrogate`.
    candidates, question
        As in :func:`choose`.
    random_state
        Seed of the folds.

    Attributes
    ----------
    scores_ : dict
        Mean absolute error of ln(y) on held-out rows by name; candidates that refused the data are missing.
    name_, best_
        The name chosen, and the surrogate fitted to all rows.
    """

    def __init__(
        self,
        load: int = 0,
        groups: tuple[int, ...] = (1,),
        elasticity: tuple[float, float] = RISING,
        candidates: tuple[str, ...] = CANDIDATES,
        question: str = "load",
        random_state: int = 0,
    ) -> None:
        super().__init__(load, groups, elasticity)
        self.candidates = candidates
        self.question = question
        self.random_state = random_state

    def _fit(self, X: Floats, z: Floats) -> None:
        y = np.exp(z)
        roles = (self.load, self.groups)
        choice = choose(X, y, roles, self.elasticity, self.question, self.candidates, self.random_state)
        self.name_, self.scores_ = choice.name, dict(choice.scores)
        self.best_ = choice.surrogate.fit(X, y)

    def _log_curves(self, X: Floats) -> tuple[Floats, Floats]:
        curves = np.log(self.best_.predict(self._over_grid(X))).reshape(len(X), -1)
        return curves, np.ones_like(curves)


def _score(surrogate: LoadSurrogate, X: Floats, y: Floats, folds: Ints) -> float:
    errors = [
        np.abs(np.log(clone(surrogate).fit(X[folds != fold], y[folds != fold]).predict(X[folds == fold])
                      / y[folds == fold]))
        for fold in np.unique(folds)
    ]  # fmt: skip
    return float(np.concatenate(errors).mean())


def _folds(X: Floats, load: int, groups: tuple[int, ...], question: str, seed: int) -> Ints:
    """Return the fold of each row, (N,)."""
    draw = np.random.default_rng(seed)
    if not groups:
        return draw.permutation(len(X)) % FOLDS
    if question == "configuration":
        coarsest = next((column for column in groups if np.ptp(X[:, column]) > 0), None)
        if coarsest is None:
            raise InputError(f"columns {groups} of X hold one group each; choosing for others needs two")
        member = np.unique(X[:, coarsest], return_inverse=True)[1]
        return draw.permutation(member.max() + 1)[member] % FOLDS
    folds = np.empty(len(X), dtype=np.intp)
    for configuration in np.unique(X[:, groups[-1]]):
        at = X[:, groups[-1]] == configuration
        # Repeats of a load stay together: one says what no new load could know.
        loads, which = np.unique(X[at, load], return_inverse=True)
        folds[at] = (draw.permutation(max(len(loads), FOLDS)) % FOLDS)[which]
    return folds
