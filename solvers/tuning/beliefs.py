"""All that is believed of all candidates after some measurements, and what measuring each of them promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qplan.solvers.tuning.acquisition import Belief, escape_probability, expected_gain
from qplan.solvers.tuning.axes import Axis
from qplan.solvers.tuning.candidates import Candidates
from qplan.solvers.tuning.evidence import Evidence
from qplan.solvers.tuning.hypervolume import free_boxes
from qplan.solvers.tuning.process import Features
from qplan.solvers.tuning.surrogate import Known, Surrogate, learn

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

_MARGIN = 0.1  # of the range of losses, from the worst to the reference
_FANTASIES = 8
_SHORTLIST = 100
# What surrogates say of their own error is wrong, by a factor that differs between studies: standard deviation of its
# logarithm. With it 28 of 30 studies of development tables (the benchmark's formula, other constants and noise) kept
# below the 90 % bound of what is left, 22 without; of candidates said to be on the front with less than 1 %, 0.4 % were
# (said: 0.4 %), 1.1 % without (said: 0.2 %).
_DOUBT = 0.4
_RUNS = 0.9  # share of configurations that an engine is taken to run, before any was tried ...
_RUNS_WEIGHT = 2.0  # ... as if so many had been


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is believed of N candidates and M objectives.

    Attributes
    ----------
    surrogates, axes
        (M,): of the objectives, and what they say of every candidate.
    reference
        (M,): losses up to which volume counts.
    limits
        (M,): losses beyond which nothing is of interest; infinite where the axes say none.
    runs, feasible
        (N,): probability that the engine runs the configuration, and that it also meets all constraints.
    constraints
        By name: a surrogate of the constraint, which is met at 0 and below.
    """

    evidence: Evidence
    surrogates: tuple[Surrogate, ...]
    axes: tuple[Belief, ...]
    reference: Floats
    limits: Floats
    runs: Floats
    feasible: Floats
    constraints: Mapping[str, Surrogate]

    def with_running(self, evidence: Evidence) -> Beliefs:
        """Return the same beliefs where nothing was found since, but others are measured."""
        return replace(self, evidence=evidence)

    def boxes(self) -> tuple[Floats, Floats]:
        """Return what the measured front leaves free."""
        return free_boxes(self.evidence.measured, self.reference)

    def doubted(self) -> tuple[Belief, ...]:
        """Return what is believed of each axis, (M,), with the surrogates' errors of their own error."""
        return tuple(belief.doubted(_DOUBT) for belief in self.axes)

    def chances(self) -> Floats:
        """Return the highest probability with which a candidate can be on the front, (N,).

        That no measured point dominates it; those not measured can only lower it. What volume is counted up to does
        not matter: that lies by what is believed, and beyond it a candidate can still be on the front.
        """
        return escape_probability(self.doubted(), free_boxes(self.evidence.measured, self.limits)) * self.feasible

    def draws(self, among: Ints, count: int, rng: np.random.Generator) -> Floats:
        """Draw losses of some candidates together, (count, len(among), M), by surrogates whose deviations are doubted.

        A draw's deviations from the mean are all off by one factor; the factors are the quantiles of its distribution.
        """
        from scipy.special import ndtri

        drawn = np.stack([one.draw(among, count, rng) for one in self.surrogates], axis=-1)
        mean = np.stack([belief.mean[among] for belief in self.axes], axis=-1)
        factors = np.exp(_DOUBT * ndtri((np.arange(count) + 0.5) / count))
        doubted: Floats = mean + factors[:, None, None] * (drawn - mean)
        return doubted

    def gains(self, among: Ints, rng: np.random.Generator) -> Floats:
        """Return the expected gain of hypervolume of measuring each of some candidates, (len(among),).

        What runs is fantasised: the gain is the mean over draws of what it may find (Snoek, Larochelle, Adams:
        Practical Bayesian Optimization, NeurIPS 2012, section 3.2). Only those are looked at that promise most without.
        """
        gains = expected_gain([belief.take(among) for belief in self.axes], self.boxes()) * self.feasible[among]
        running = np.flatnonzero(self.evidence.running & ~self.evidence.over)
        if not len(running):
            return gains
        best = np.argsort(-gains)[:_SHORTLIST]
        drawn = np.stack([one.draw(running, _FANTASIES, rng) for one in self.surrogates], axis=-1)
        expected = np.zeros(len(best))
        for found in drawn:
            given = [one.given(running, found[:, m]).belief(among[best]) for m, one in enumerate(self.surrogates)]
            boxes = free_boxes(np.concatenate([self.evidence.measured, found]), self.reference)
            expected += expected_gain(given, boxes) / _FANTASIES
        gains = np.zeros(len(among))
        gains[best] = expected * self.feasible[among[best]]
        return gains


def believe(
    candidates: Candidates,
    axes: Sequence[Axis],
    features: Features,
    evidence: Evidence,
    before: Beliefs | None = None,
) -> Beliefs:
    """Learn from what a study has found; `before` is what was believed after fewer measurements."""
    nothing = np.full(len(candidates), np.nan)
    surrogates = []
    for m, axis in enumerate(axes):
        found = evidence.losses[:, m]
        if candidates.known is not None:
            found = np.where(np.isnan(found), axis.losses(candidates.known[:, m]), found)
        mean = nothing if candidates.prior_mean is None else axis.losses(candidates.prior_mean[:, m])
        std = nothing if candidates.prior_std is None else np.asarray(candidates.prior_std[:, m], dtype=float)
        items, of_items = _items(candidates.groups[m] if candidates.groups else None, features)
        known = Known(items, of_items, found, mean, std)
        surrogates.append(learn(known, None if before is None else before.surrogates[m]))
    every = np.arange(len(candidates))
    constraints = {
        name: learn(Known(every, features, excess, nothing, nothing), before.constraints.get(name) if before else None)
        for name, excess in evidence.constraints.items()
    }
    beliefs = tuple(surrogate.belief() for surrogate in surrogates)
    runs = _runs(features, evidence)
    feasible = runs.copy()
    for surrogate in constraints.values():
        feasible *= surrogate.belief().below(np.zeros(1))[:, 0]
    reference = _reference(axes, beliefs, evidence)
    limits = np.array([np.inf if axis.reference is None else float(axis.losses(axis.reference)) for axis in axes])
    return Beliefs(evidence, tuple(surrogates), beliefs, reference, limits, runs, feasible, constraints)


def _items(group: Sequence[str] | None, features: Features) -> tuple[Ints, Features]:
    """Return the item of each candidate, and the features of items: those that all of a group share."""
    if group is None:
        return np.arange(len(features.values)), features
    _, first, items = np.unique(np.asarray(group), return_index=True, return_inverse=True)
    own = features.values[first]
    shared = (features.values == own[items]).all(axis=0)
    return items, Features(own[:, shared], features.categorical[shared])


def _reference(axes: Sequence[Axis], beliefs: Sequence[Belief], evidence: Evidence) -> Floats:
    """Return the losses up to which volume counts: what the axes say, else beyond all that is seen or expected."""
    reference = []
    for m, (axis, belief) in enumerate(zip(axes, beliefs, strict=True)):
        if axis.reference is not None:
            reference.append(float(axis.losses(axis.reference)))
            continue
        seen = np.append(belief.mean, evidence.losses[~np.isnan(evidence.losses[:, m]), m])
        margin = _MARGIN * float(np.ptp(seen))
        reference.append(float(seen.max()) + (margin or 1.0))
    return np.array(reference)


def _runs(features: Features, evidence: Evidence) -> Floats:
    """Return the probability that the engine runs each candidate, (N,): what like ones did, and a share of doubt."""
    tried = np.flatnonzero(evidence.over)
    if not evidence.refused.any():
        return np.ones(len(features.values))
    apart = features.apart(np.arange(len(features.values)), tried)
    alike = np.exp(-3 * np.sqrt((apart**2).sum(axis=0)))
    ran = alike @ ~evidence.refused[tried]
    share: Floats = (_RUNS_WEIGHT * _RUNS + ran) / (_RUNS_WEIGHT + alike.sum(axis=1))
    return share
