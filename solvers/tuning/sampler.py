"""An Optuna sampler over finitely many candidates that looks for a front with few measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, RandomSampler

from qplan.core.errors import InputError, QplanError
from qplan.solvers.tuning.axes import Axis
from qplan.solvers.tuning.beliefs import Beliefs, believe
from qplan.solvers.tuning.candidates import Candidates, Value
from qplan.solvers.tuning.evidence import CHOSEN, Evidence, evidence_of
from qplan.solvers.tuning.process import Scales, fit
from qplan.solvers.tuning.stopping import Outlook, look_ahead

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

_FIRST = 5  # spread over the space before anything is expected, where there are no predictions
_FEWEST = 2  # measurements before which no candidate is ruled out
_YIELDS = 20  # times that a choice is given up to another worker


class Exhausted(QplanError):  # noqa: N818 - an answer, not a fault
    """No candidate is worth a measurement any more."""


class FrontSampler(BaseSampler):
    """Propose the candidate whose measurement is expected to add most hypervolume per cost.

    Objectives are modelled by :mod:`qplan.solvers.tuning.surrogate`, from the candidates' predictions where there are
    any. What other workers measure is taken into account; no candidate is proposed twice. All state is in the study.

    Parameters
    ----------
    axes
        As many as the study has objectives, in their order.
    seed
        With the trial's number it decides ties and draws.
    threshold
        Candidates that are on the front with a lower probability are never proposed.

    Raises
    ------
    InputError
        The candidates' arrays are not of as many objectives as there are axes.
    """

    def __init__(
        self,
        candidates: Candidates,
        axes: Sequence[Axis],
        *,
        seed: int | None = None,
        threshold: float = 0.01,
    ) -> None:
        self.candidates = candidates
        self.axes = tuple(axes)
        candidates.check(self.axes)
        self._features = candidates.encoded()
        self._told = all(
            any(
                array is not None and not np.isnan(array[:, m]).all()
                for array in (candidates.prior_mean, candidates.known)
            )
            for m in range(len(self.axes))
        )
        self._seed = int(np.random.default_rng(seed).integers(2**31))
        self._threshold = threshold
        self._other = RandomSampler(seed)
        self._latest: tuple[bytes, Beliefs] | None = None

    def reseed_rng(self) -> None:
        """Do nothing: the trial's number tells parallel trials apart."""

    def infer_relative_search_space(
        self,
        study: Study,
        trial: FrozenTrial,  # noqa: ARG002 - Optuna's signature
    ) -> dict[str, BaseDistribution]:
        """Return the parameters of the candidates."""
        directions = [direction.name.lower() for direction in study.directions]
        if directions != [axis.direction for axis in self.axes]:
            expected = ", ".join(f"{axis.name}: {axis.direction}" for axis in self.axes)
            raise InputError(f"study {study.study_name}: directions are {', '.join(directions)}; expected {expected}")
        return self.candidates.distributions

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002 - Optuna's signature
    ) -> dict[str, Any]:
        """Choose a candidate and return its parameters.

        Raises
        ------
        Exhausted
            When none is worth a measurement.
        """
        fixed: Mapping[str, Value] = trial.system_attrs.get("fixed_params", {})
        if fixed and self.candidates.index(fixed) is not None:
            return {}  # the parameters are given already
        contested: set[int] = set()
        for _ in range(_YIELDS):
            with _one_thread():
                index = self._choose(study, trial, fixed, contested)
            # Written, then looked at: of two workers who choose the same, one at least sees the other, and yields.
            study._storage.set_trial_system_attr(trial._trial_id, CHOSEN, self.candidates.ids[index])
            others = study.get_trials(deepcopy=False)
            if not evidence_of(self.candidates, self.axes, others, but=trial.number).taken[index]:
                return dict(self.candidates.parameters[index])
            contested.add(index)
        raise Exhausted(f"trial {trial.number}: {_YIELDS} candidates in a row were taken by other workers meanwhile")

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that is not the candidates'."""
        return self._other.sample_independent(study, trial, param_name, param_distribution)

    def beliefs(self, study: Study, but: int | None = None) -> Beliefs:
        """Return what is believed after what the study has found, without the trial with number `but`."""
        evidence = evidence_of(self.candidates, self.axes, study.get_trials(deepcopy=False), but)
        return self._beliefs(evidence)

    def outlook(self, study: Study) -> Outlook:
        """Return what the front is worth by now, and what measuring on promises."""
        rng = np.random.default_rng(self._seed)
        with _one_thread():
            beliefs = self.beliefs(study)
            return look_ahead(self.candidates, self.axes, beliefs, self.open(beliefs), rng)

    def open(self, beliefs: Beliefs) -> Bools:
        """Return which candidates are neither taken nor ruled out, (N,)."""
        free = ~beliefs.evidence.taken
        if beliefs.evidence.complete.sum() >= _FEWEST:
            free &= beliefs.chances() >= self._threshold
        return free

    def _beliefs(self, evidence: Evidence) -> Beliefs:
        key, before = evidence.key(), None
        if self._latest is not None:
            before = self._latest[1]
            if self._latest[0] == key:
                return before.with_running(evidence)
        beliefs = believe(self.candidates, self.axes, self._features, evidence, before)
        self._latest = (key, beliefs)
        return beliefs

    def _choose(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Value], but: set[int]) -> int:
        beliefs = self.beliefs(study, but=trial.number)
        evidence = beliefs.evidence
        rng = np.random.default_rng([self._seed, trial.number])
        free = ~evidence.taken if self._is_early(evidence) else self.open(beliefs)
        free &= [all(one.get(name) == value for name, value in fixed.items()) for one in self.candidates.parameters]
        free[list(but)] = False
        among = np.flatnonzero(free)
        if not len(among):
            raise Exhausted(
                f"trial {trial.number}: of {len(self.candidates)} candidates {evidence.taken.sum()} are taken, and of "
                f"the others none is on the front with a probability of {self._threshold:g} or more"
            )
        if self._is_early(evidence):
            return int(among[self._unlikeness(evidence, among, rng).argmax()])
        gains = beliefs.gains(among, rng) / self._cost(beliefs)[among]
        best = np.flatnonzero(gains >= gains.max())
        return int(among[rng.choice(best)])

    def _is_early(self, evidence: Evidence) -> bool:
        """Whether nothing is expected of some objective yet: no predictions, and few measurements."""
        return evidence.complete.sum() < _FIRST and not self._told

    def _unlikeness(self, evidence: Evidence, among: Ints, rng: np.random.Generator) -> Floats:
        """Return how unlike what is taken each of some candidates is: how little that tells of it."""
        count = len(self.candidates)
        blank = Scales(np.zeros(count), np.ones(count), np.ones((count, 1)))
        process = fit(self._features, blank, np.empty(0, dtype=np.intp), np.empty(0))
        taken = np.flatnonzero(evidence.taken)
        std: Floats = process.given(taken, np.zeros(len(taken))).mean_std(among)[1]
        return std * rng.uniform(0.95, 1, len(among))

    def _cost(self, beliefs: Beliefs) -> Floats:
        """Return what measuring each candidate costs, (N,): what its group has measured is not measured again."""
        given = self.candidates
        cost = np.ones(len(given)) if given.cost is None else np.asarray(given.cost, dtype=float)
        if given.group_cost is not None:
            for more, surrogate in zip(given.group_cost, beliefs.surrogates, strict=True):
                cost = cost + more * np.isnan(surrogate.exact[surrogate.items])
        return cost


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let BLAS work in one thread, where that can be said: the matrices are small, and threads that wait cost more."""
    controller = _blas()
    if controller is None:
        yield
    else:
        with controller.limit(limits=1, user_api="blas"):
            yield


@cache
def _blas() -> Any:
    import scipy.linalg  # noqa: F401 - the controller knows what is loaded by now, and scipy brings a BLAS of its own

    try:
        from threadpoolctl import ThreadpoolController  # comes with scikit-learn
    except ImportError:
        return None
    return ThreadpoolController()
