"""How far off what is fitted to measured loads is, on loads, lengths, configurations and models left out of it all.

Whatever is left out has no part in anything: surrogates are chosen, fitted and calibrated without it, by the same
function that makes the one that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.models.load.features import CONFIGURATION, GROUPS, LENGTHS, LOAD, LoadRows
from qplan.models.steptimes import Bools, Floats, Ints

if TYPE_CHECKING:
    from qplan.models.intervals.bounds import Bounds
    from qplan.models.intervals.conformal import ConformalRegressor

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # coverages that are promised and checked
COVERAGE = 0.9
LOADS_LEFT_OUT = ("load, in between", "load, the largest")  # of configurations that stay
_FEWEST_ROWS = 12  # to fit to
_PARTS = 3  # in which groups are left out
_MOST_ROWS = 1500  # that errors are found on, whole configurations
_REPEATS = 0.05  # loads whose logarithms are closer are repeats of one
_SEED = 0

Fit = Callable[[Floats, Floats, str], "ConformalRegressor"]  # rows, and the question that it is to answer
_Masks = list[Bools]


@dataclass(frozen=True, slots=True)
class HeldOutLoads:
    """Errors and intervals of one metric on one kind of rows left out of everything.

    Attributes
    ----------
    metric, what
        The metric, and what was left out.
    points
        How many rows.
    median_error, p90_error
        Of the absolute relative error.
    coverage
        Share of truths inside, by the share promised; of the rows that had an interval.
    bounded, guessed
        Share of the rows that had a 90 % interval, and share whose interval was called a guess.
    """

    metric: str
    what: str
    points: int
    median_error: float
    p90_error: float
    coverage: Mapping[float, float]
    bounded: float
    guessed: float


@dataclass(frozen=True, slots=True)
class Trials:
    """The fits that show the errors of one metric.

    Attributes
    ----------
    rows
        What is judged: all rows, or as many as are worth the time.
    left_out
        By what is left out: the parts, each (N,), in which it is.
    """

    metric: str
    rows: LoadRows
    left_out: Mapping[str, _Masks]

    @classmethod
    def of(cls, metric: str, rows: LoadRows) -> Trials:
        """Plan the trials of a metric."""
        some = _thinned(rows)
        return cls(metric, some, dict(_left_out(some.X)))

    def __len__(self) -> int:
        return sum(map(len, self.left_out.values()))

    def run(self, fit: Fit, step: Callable[[], object]) -> Iterator[HeldOutLoads]:
        """Yield the errors of each kind of rows left out of `fit`; `step` is called after every fit."""
        X, y = self.rows.X, self.rows.y
        for what, masks in self.left_out.items():
            question = "load" if what in LOADS_LEFT_OUT else "configuration"
            found = []
            for mask in masks:
                found.append((y[mask], fit(X[~mask], y[~mask], question).bounds_at(X[mask], SHARES)))
                step()
            yield _summary(self.metric, what, found)


def _thinned(rows: LoadRows) -> LoadRows:
    """Return at most `_MOST_ROWS` rows, or little more, of whole configurations."""
    if len(rows.y) <= _MOST_ROWS:
        return rows
    own = rows.X[:, CONFIGURATION]
    order = np.random.default_rng(_SEED).permutation(np.unique(own))
    counts = np.array([(own == one).sum() for one in order])
    kept = np.isin(own, order[: int(np.searchsorted(counts.cumsum(), _MOST_ROWS)) + 1])
    return LoadRows(rows.X[kept], rows.y[kept], rows.rows[kept], rows.elasticity, rows.encoder)


def _left_out(X: Floats) -> Iterator[tuple[str, _Masks]]:
    """Yield kinds of rows to leave out, and the parts, each (N,), in which they are left out."""
    between, largest = np.zeros(len(X), dtype=bool), np.zeros(len(X), dtype=bool)
    for configuration in np.unique(X[:, CONFIGURATION]):
        own = np.flatnonzero(X[:, CONFIGURATION] == configuration)
        step = _steps(X[own, LOAD])
        last = int(step.max())
        between[own] = (step % 2 == 1) & (step < last)
        largest[own] = (step > last - max(1, (last + 1) // 5)) & (last > 1)
    yield from _some(LOADS_LEFT_OUT[0], [between])
    yield from _some(LOADS_LEFT_OUT[1], [largest])
    lengths = X[:, LENGTHS].round(1)  # of logarithms: within 10 % they are alike
    yield from _groups("lengths", np.unique(lengths, axis=0, return_inverse=True)[1].ravel())
    model, deployment, configuration = (np.unique(X[:, group], return_inverse=True)[1] for group in GROUPS)
    yield from _groups("configuration", configuration)
    if model.max() < deployment.max() < configuration.max():
        yield from _groups("deployment", deployment)
    yield from _groups("model", model)


def _steps(loads: Floats) -> Ints:
    """Return the number of each load, (N,), in rising order; repeats, which may differ a little, have the same."""
    order = np.argsort(loads)
    apart = np.diff(np.log(loads[order])) > _REPEATS
    step = np.empty(len(loads), dtype=np.intp)
    step[order] = np.concatenate([[0], apart.cumsum()])
    return step


def _groups(what: str, member: Any) -> Iterator[tuple[str, _Masks]]:
    """Yield the parts in which whole groups are left out, if there are two."""
    if member.max() > 0:
        part = (np.random.default_rng(_SEED).permutation(member.max() + 1) % _PARTS)[member]
        yield from _some(what, [part == one for one in np.unique(part)])


def _some(what: str, masks: _Masks) -> Iterator[tuple[str, _Masks]]:
    """Yield the parts that leave enough rows to fit to, if there is one."""
    kept = [mask for mask in masks if mask.any() and (~mask).sum() >= _FEWEST_ROWS]
    if kept:
        yield what, kept


def _summary(metric: str, what: str, found: Sequence[tuple[Floats, Sequence[Bounds]]]) -> HeldOutLoads:
    error = np.concatenate([np.abs(bounds[0].value / truth - 1) for truth, bounds in found])
    coverage = {}
    for n, share in enumerate(SHARES):
        inside = np.concatenate([bounds[n].cover(truth)[np.isfinite(bounds[n].upper)] for truth, bounds in found])
        if len(inside):
            coverage[share] = float(inside.mean())
    usual = [bounds[SHARES.index(COVERAGE)] for _, bounds in found]
    bounded = np.concatenate([np.isfinite(one.upper) for one in usual])
    guessed = np.concatenate([one.beyond for one in usual])
    median, p90 = map(float, np.quantile(error, (0.5, 0.9)))
    return HeldOutLoads(
        metric, what, len(error), median, p90, coverage, float(bounded.mean()), float((guessed & bounded).mean())
    )
