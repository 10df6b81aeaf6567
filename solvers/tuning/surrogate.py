"""What is believed of one objective of all candidates, from measurements and from predictions that may be wrong.

Hypotheses are held at once and weighed by the evidence that the measurements lend them:

- the loss is a smooth function of the candidates' features around a constant;
- it is one around a trend, linear in the features that are numbers;
- the predictions, where there are any, are right up to an offset, a scale and a smooth residual:
  ``y = a + b m(x) + r(x)`` with ``b`` near 1.

So good predictions are used from the first measurement on, and wrong ones are dropped after a few. Candidates of a
group share one value: they are one *item* of the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qplan.solvers.tuning.acquisition import Belief
from qplan.solvers.tuning.process import Features, Process, Scales, fit

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_TRUST = 0.9  # in predictions, before anything is measured
_SLOPE_STD = 0.3  # of the scale of predictions around 1
_RESIDUAL = 0.3  # of the predictions' spread: their error where nobody says
_FEWEST = 2  # measurements that tell location and scale
_MOST = 150  # items that a process is fitted to
_STEPS = 40  # of a first fit, and of one that goes on from an earlier
_STEPS_ON = 10
_MORE = 1.05  # measurements over those of the latest fit, from which it is worth another
_NOTHING = 1e-3  # weight of a hypothesis that is passed over
_SPREAD = 0.02  # least standard deviation of what is measured; of losses that are logarithms, 2 %


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one objective: losses of candidates, NaN where there is none; arrays are (N,).

    Attributes
    ----------
    items
        The item of each candidate, numbers from 0.
    features
        Of the items.
    exact
        Losses that are measured or known.
    prior_mean, prior_std
        Predicted losses and their standard errors.
    """

    items: Ints
    features: Features
    exact: Floats
    prior_mean: Floats
    prior_std: Floats


@dataclass(frozen=True, slots=True)
class Surrogate:
    """One objective of N candidates.

    Attributes
    ----------
    items
        (N,), as of :class:`Known`.
    exact
        By item: its loss where it is known, else NaN.
    processes, weights
        The hypotheses, and the probability of each; none where every item is known.
    fitted
        Measured items that the hyperparameters were fitted to.
    """

    items: Ints
    exact: Floats
    processes: tuple[Process, ...]
    weights: Floats
    fitted: int

    def belief(self, candidates: Ints | None = None) -> Belief:
        """Return what is believed of candidates; ``None``: of every one."""
        items, place = np.unique(self.items if candidates is None else self.items[candidates], return_inverse=True)
        exact = self.exact[items]
        sure = ~np.isnan(exact)
        heard = self.weights > _NOTHING
        rows = [process.mean_std(items) for process, one in zip(self.processes, heard, strict=False) if one]
        rows = rows or [(exact, np.zeros(len(exact)))]
        means = np.stack([np.where(sure, exact, mean) for mean, _ in rows])
        stds = np.stack([np.where(sure, 0.0, std) for _, std in rows])
        weights = self.weights[heard] / self.weights[heard].sum()
        return Belief(weights, means[:, place], stds[:, place])

    def draw(self, candidates: Ints, count: int, rng: np.random.Generator) -> Floats:
        """Draw losses of candidates together, (count, len(candidates))."""
        items, place = np.unique(self.items[candidates], return_inverse=True)
        drawn = np.tile(self.exact[items], (count, 1))
        open_items = np.isnan(self.exact[items])
        if open_items.any():
            shares = rng.multinomial(count, self.weights)
            parts = [
                process.draw(items[open_items], share, rng)
                for process, share in zip(self.processes, shares, strict=True)
                if share
            ]
            drawn[:, open_items] = rng.permutation(np.concatenate(parts))
        return drawn[:, place]

    def given(self, candidates: Ints, losses: Floats) -> Surrogate:
        """Return the surrogate as if these losses of candidates, each (n,), had been measured."""
        items, first = np.unique(self.items[candidates], return_index=True)
        new = np.isnan(self.exact[items])
        if not new.any():
            return self
        items, losses = items[new], losses[first[new]]
        exact = self.exact.copy()
        exact[items] = losses
        return replace(self, exact=exact, processes=tuple(one.given(items, losses) for one in self.processes))


def learn(known: Known, before: Surrogate | None = None) -> Surrogate:
    """Fit the hypotheses to what is known; `before` is an earlier fit, from whose hyperparameters to go on."""
    count = int(known.items.max()) + 1
    exact, mean, std = (_by_item(known.items, one, count) for one in (known.exact, known.prior_mean, known.prior_std))
    seen = np.flatnonzero(~np.isnan(exact))
    if len(seen) == count:
        return Surrogate(known.items, exact, (), np.ones(1), len(seen))
    if len(seen) > _MOST:
        seen = np.random.default_rng(0).choice(seen, _MOST, replace=False)
    y = exact[seen]
    # Without predictions the outputs' own mean and spread are all there is; before there are any, the predictions'.
    around = y if len(y) >= _FEWEST else mean[~np.isnan(mean)]
    center = float(around.mean()) if len(around) else 0.0
    spread = max(float(around.std()), _SPREAD) if len(around) else 1.0
    location, scale = np.full(count, center), np.full(count, spread)
    numbers = 2 * known.features.values[:, ~known.features.categorical] - 1
    hypotheses = [
        Scales(location, scale, np.ones((count, 1))),
        Scales(location, scale, np.column_stack([np.ones(count), numbers])),
    ]
    trust = [0.5, 0.5]
    if not np.isnan(mean).all():
        hypotheses.append(_trusting(mean, std))
        trust = [(1 - _TRUST) / 2, (1 - _TRUST) / 2, _TRUST]
    starts: Sequence[Floats | None] = [None] * len(hypotheses)
    steps, fitted = _STEPS, len(seen)
    if before is not None and len(before.processes) == len(hypotheses):
        starts = [one.theta for one in before.processes]
        steps, fitted = (0, before.fitted) if before.fitted < len(seen) < before.fitted * _MORE else (_STEPS_ON, fitted)
    processes = [
        fit(known.features, scales, seen, y, start, steps=steps)
        for scales, start in zip(hypotheses, starts, strict=True)
    ]
    evidence = np.array([one.evidence for one in processes]) + np.log(trust)
    weights = np.exp(evidence - evidence.max())
    return Surrogate(known.items, exact, tuple(processes), weights / weights.sum(), fitted)


def _trusting(mean: Floats, std: Floats) -> Scales:
    """Return the scales of outputs around predictions, by item; both may be NaN."""
    there = ~np.isnan(mean)
    center, spread = float(mean[there].mean()), max(float(mean[there].std()), _SPREAD)
    scale = np.where(np.isnan(std), _RESIDUAL * spread, np.maximum(std, 1e-6))
    location = np.where(there, mean, center)
    scale = np.where(there, scale, spread)
    usual = float(np.median(scale))
    return Scales(location, scale, np.column_stack([usual / scale, _SLOPE_STD * (location - center) / scale]))


def _by_item(items: Ints, values: Floats, count: int) -> Floats:
    """Return the mean of what is known of each item's candidates, NaN where nothing is, (count,)."""
    there = ~np.isnan(values)
    sums = np.bincount(items[there], values[there], count)
    numbers = np.bincount(items[there], minlength=count)
    return np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
