"""The surrogate that does best on what is held out of its own data.

Which one is best depends on what will be asked: a load between or beyond those measured of a known configuration, or
a configuration that nobody measured. Both questions are put to every candidate, on folds of the training rows alone,
so that an outer fold that judges the choice has no part in it (Cawley & Talbot 2010).
"""

from __future__ import annotations

import numpy as np

from qplan.core.errors import InputError
from qplan.models.load import open_surrogate
from qplan.models.load.contract import LoadSurrogate
from qplan.models.load.monotone import RISING
from qplan.models.steptimes import Floats, Ints

CANDIDATES = ("pooled-process", "pooled-curves", "monotone-boosting")
QUESTIONS = ("load", "configuration")
FOLDS = 3


class SelectedSurrogate(LoadSurrogate):
    """The best of several surrogates at one question, refitted to all rows.

    Parameters
    ----------
    load, groups, elasticity
        As in :class:`~qplan.models.load.contract.LoadSurrogate`.
    candidates
        Names to choose from.
    question
        ``load``: one row in `FOLDS` of each configuration is held out at a time. ``configuration``: whole groups of
        the coarsest kind are, models if there are codes of models.
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
        if self.question not in QUESTIONS:
            raise InputError(f"question='{self.question}'; expected one of {', '.join(QUESTIONS)}")
        folds = self._folds(X)
        self.scores_: dict[str, float] = {}
        refusals = []
        for name in self.candidates:
            try:
                self.scores_[name] = self._score(name, X, z, folds)
            except InputError as error:
                refusals.append(f"{name}: {error}")
        if not self.scores_:
            raise InputError(f"no candidate takes these rows: {'; '.join(refusals) or 'none was named'}")
        self.name_ = min(self.scores_, key=lambda name: self.scores_[name])
        self.best_ = self._open(self.name_).fit(X, np.exp(z))

    def _log_curves(self, X: Floats) -> tuple[Floats, Floats]:
        curves = np.log(self.best_.predict(self._over_grid(X))).reshape(len(X), -1)
        return curves, np.ones_like(curves)

    def _score(self, name: str, X: Floats, z: Floats, folds: Ints) -> float:
        errors = [
            np.abs(np.log(self._open(name).fit(X[folds != fold], np.exp(z[folds != fold])).predict(X[folds == fold]))
                   - z[folds == fold])
            for fold in np.unique(folds)
        ]  # fmt: skip
        return float(np.concatenate(errors).mean())

    def _folds(self, X: Floats) -> Ints:
        """Return the fold of each row, (N,)."""
        draw = np.random.default_rng(self.random_state)
        if not self.groups:
            return draw.permutation(len(X)) % FOLDS
        if self.question == "configuration":
            _, member = np.unique(X[:, self.groups[0]], return_inverse=True)
            if member.max() == 0:
                raise InputError(f"column {self.groups[0]} of X holds one group; choosing for others needs two")
            return draw.permutation(member.max() + 1)[member] % FOLDS
        folds = np.empty(len(X), dtype=np.intp)
        for configuration in np.unique(X[:, self.groups[-1]]):
            at = np.flatnonzero(X[:, self.groups[-1]] == configuration)
            folds[at] = draw.permutation(max(len(at), FOLDS))[: len(at)] % FOLDS
        return folds

    def _open(self, name: str) -> LoadSurrogate:
        return open_surrogate(name, self.load, self.groups, self.elasticity)
