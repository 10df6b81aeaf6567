"""A Gaussian process over configurations and load: what every configuration tells about the curve of any other.

ln(y) is the sum of

- a plane over ln(load) and the physical features, with a wide prior: the trend that carries extrapolation;
- a smooth surface over both: curves that are alike where configurations are alike;
- a rough surface over both: steps at particular loads that similar configurations share, such as the largest
  batch that has a captured graph;
- for each group (a model, a configuration of it) an offset and a smooth curve of its own;
- noise of single runs.

Each surface has a squared-exponential kernel with a length for ln(load) and one for each feature (automatic
relevance). Variances and lengths maximise the marginal likelihood (Rasmussen & Williams 2006, section 5.4.1) under
log-normal priors, so nothing is chosen by hand, and three points of a configuration are enough: they fix its offset,
and the shape comes from its likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from qplan.core.errors import InputError
from qplan.models.load.contract import CHUNK, LoadSurrogate
from qplan.models.load.monotone import RISING
from qplan.models.steptimes import Floats, Ints

MAX_ROWS = 4000  # memory and time grow with the square and the cube
LEARNING_ROWS = 600  # rows that variances and lengths are learned from
PRIOR_SD = 1.0  # of the logarithms of variances' roots and lengths around where they start
SLOPE_SD, LEVEL_SD = 2.0, 5.0  # of the plane's slopes in standardised features, and of its level
START_NOISE = 0.02
SAME = 1e-9  # a standard deviation of rounding alone


@dataclass(frozen=True, slots=True)
class _Term:
    """A part of the kernel: where it is alike, and where in the vector of parameters its own start.

    Attributes
    ----------
    group
        Position of the group code that two rows must share, or -1.
    inputs
        Columns of the inputs whose distance counts.
    start
        Logarithms of the standard deviation, then of the length of each input, to begin from.
    at
        Position of the first of them among all parameters.
    """

    group: int
    inputs: tuple[int, ...]
    start: tuple[float, ...]
    at: int


class PooledProcess(LoadSurrogate):
    """Gaussian process with shared and own curves; see the module.

    Parameters
    ----------
    load, groups, elasticity
        As in :class:`~qplan.models.load.contract.LoadSurrogate`.
    parameters
        Variances and lengths of an earlier fit, ``parameters_``, to use as they are; ``None`` learns them.
    columns
        Physical features of that fit, ``features_``, which may not all vary in the rows to come; ``None``: those that
        do.

    Attributes
    ----------
    parameters_
        Logarithms of standard deviations and lengths, term by term, and of the noise.
    """

    def __init__(
        self,
        load: int = 0,
        groups: tuple[int, ...] = (1,),
        elasticity: tuple[float, float] = RISING,
        parameters: Floats | None = None,
        columns: Ints | None = None,
    ) -> None:
        super().__init__(load, groups, elasticity)
        self.parameters = parameters
        self.columns = columns

    def tuned(self, X: Floats, y: Floats) -> Self:
        """Return a process, not fitted, with the variances and lengths of one that is fitted to X, y."""
        learned = clone(self).fit(X, y)
        return type(self)(self.load, self.groups, self.elasticity, learned.parameters_, learned.features_)

    def predict_std(self, X: Floats) -> Floats:
        """Return the standard deviation of ln(y), (N,), of a single run at rows X (N, F)."""
        check_is_fitted(self)
        X = np.asarray(X, dtype=float)
        self._check(X)
        return np.concatenate([self._posterior(part)[1] for part in _chunks(X)])

    def _fit(self, X: Floats, z: Floats) -> None:
        if len(z) > MAX_ROWS:
            raise InputError(
                f"a Gaussian process of {len(z)} rows; it takes up to {MAX_ROWS}: use monotone-boosting for more"
            )
        if self.columns is not None:
            self.features_ = np.asarray(self.columns, dtype=np.intp)
        features = X[:, self.features_]
        self.centre_, self.scale_ = features.mean(axis=0), features.std(axis=0)
        self.scale_[self.scale_ < SAME] = 1.0
        self.log_load_centre_ = float(np.log(X[:, self.load]).mean())
        self.mean_ = float(z.mean())
        inputs, groups = self._inputs(X)
        terms = self._terms()
        learning = _some_configurations(groups, len(z))
        self.parameters_ = (
            _learn(terms, inputs[learning], groups[learning], z[learning] - self.mean_)
            if self.parameters is None
            else np.array(self.parameters, dtype=float)
        )
        if len(self.parameters_) != terms[-1].at + len(terms[-1].start) + 1:
            raise InputError(f"{len(self.parameters_)} parameters are not those of a process over these columns")
        covariance = _covariance(terms, self.parameters_, inputs, groups, inputs, groups)
        covariance[np.diag_indices(len(z))] += np.exp(2 * self.parameters_[-1])
        self.root_ = np.asarray(np.linalg.cholesky(covariance), dtype=float)
        self.inputs_, self.codes_ = inputs, groups
        self.weights_ = _solve(self.root_, z - self.mean_)

    def _log_curves(self, X: Floats) -> tuple[Floats, Floats]:
        parts = [self._posterior(part) for part in _chunks(self._over_grid(X))]
        mean, std = (np.concatenate(part).reshape(len(X), -1) for part in zip(*parts, strict=True))
        return mean, std**-2.0

    def _posterior(self, X: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of ln(y) of a run at rows X (N, F)."""
        from scipy.linalg import solve_triangular

        inputs, groups = self._inputs(X)
        terms = self._terms()
        across = _covariance(terms, self.parameters_, inputs, groups, self.inputs_, self.codes_)
        spread = solve_triangular(self.root_, across.T, lower=True)
        variance = _variance(terms, self.parameters_, inputs) - (spread**2).sum(axis=0)
        mean: Floats = self.mean_ + across @ self.weights_
        return mean, np.sqrt(np.maximum(variance, 0) + np.exp(2 * self.parameters_[-1]))

    def _inputs(self, X: Floats) -> tuple[Floats, Floats]:
        """Return ln(load) and standardised features, (N, 1 + P), and group codes, (N, number of groups)."""
        log_load = np.log(X[:, self.load]) - self.log_load_centre_
        return np.column_stack([log_load, (X[:, self.features_] - self.centre_) / self.scale_]), X[:, list(self.groups)]

    def _terms(self) -> list[_Term]:
        everything = tuple(range(1 + len(self.features_)))
        lengths = [0.5] * len(self.features_)  # ln of 1.6 standard deviations
        shapes: list[tuple[int, tuple[int, ...], list[float]]] = [
            (-1, everything, [np.log(0.3), np.log(2.0), *lengths]),
            (-1, everything, [np.log(0.03), np.log(0.15), *lengths]),
        ]
        for group in range(len(self.groups)):
            shapes += [(group, (), [np.log(0.2)]), (group, (0,), [np.log(0.06), np.log(1.5)])]
        terms, at = [], 0
        for group, inputs, start in shapes:
            terms.append(_Term(group, inputs, tuple(start), at))
            at += len(start)
        return terms


def _learn(terms: list[_Term], inputs: Floats, groups: Floats, z: Floats) -> Floats:
    """Return the parameters of the greatest posterior density: marginal likelihood times prior."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.optimize import minimize

    start = np.array([value for term in terms for value in term.start] + [np.log(START_NOISE)])
    plane = _plane(inputs, inputs)
    distances = (inputs.T[:, :, None] - inputs.T[:, None, :]) ** 2
    same = groups.T[:, :, None] == groups.T[:, None, :]
    identity = np.eye(len(z))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        noise = np.exp(2 * parameters[-1])
        covariance = plane + noise * identity
        parts = []
        for term in terms:
            part = _kernel(term, parameters, distances, same)
            covariance += part
            parts.append(part)
        root = cho_factor(covariance, lower=True, overwrite_a=True)
        weights = cho_solve(root, z)
        gain = cho_solve(root, identity) - np.outer(weights, weights)
        slope = np.empty_like(parameters)
        for term, part in zip(terms, parts, strict=True):
            pull = gain * part
            slope[term.at] = pull.sum()
            for n, column in enumerate(term.inputs, start=term.at + 1):
                slope[n] = 0.5 * np.vdot(pull, distances[column]) * np.exp(-2 * parameters[n])
        slope[-1] = noise * np.trace(gain)
        surprise = (parameters - start) / PRIOR_SD
        value = 0.5 * z @ weights + np.log(np.diag(root[0])).sum() + 0.5 * surprise @ surprise
        return float(value), slope + surprise / PRIOR_SD

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 40, "ftol": 1e-6})
    return np.asarray(found.x, dtype=float)


def _kernel(term: _Term, parameters: Floats, distances: Floats, same: Floats) -> Floats:
    """Return one term of the covariance from squared distances (inputs, N, M) and shared groups (groups, N, M)."""
    exponent = np.zeros(distances.shape[1:])
    for n, column in enumerate(term.inputs, start=term.at + 1):
        exponent -= distances[column] * (0.5 * np.exp(-2 * parameters[n]))
    kernel: Floats = np.exp(exponent + 2 * parameters[term.at])
    return kernel if term.group < 0 else kernel * same[term.group]


def _covariance(
    terms: list[_Term], parameters: Floats, inputs: Floats, groups: Floats, others: Floats, their_groups: Floats
) -> Floats:
    """Return the covariance, (N, M), of the curves at two sets of rows."""
    distances = (inputs.T[:, :, None] - others.T[:, None, :]) ** 2
    same = groups.T[:, :, None] == their_groups.T[:, None, :]
    covariance = _plane(inputs, others)
    for term in terms:
        covariance += _kernel(term, parameters, distances, same)
    return covariance


def _variance(terms: list[_Term], parameters: Floats, inputs: Floats) -> Floats:
    """Return the diagonal of the covariance, (N,)."""
    plane = SLOPE_SD**2 * (inputs**2).sum(axis=1) + LEVEL_SD**2
    own: Floats = plane + np.exp([2 * parameters[term.at] for term in terms]).sum()
    return own


def _plane(inputs: Floats, others: Floats) -> Floats:
    plane: Floats = SLOPE_SD**2 * inputs @ others.T + LEVEL_SD**2
    return plane


def _solve(root: Floats, z: Floats) -> Floats:
    from scipy.linalg import cho_solve

    return np.asarray(cho_solve((root, True), z), dtype=float)


def _some_configurations(groups: Floats, rows: int) -> Ints:
    """Return the rows of whole configurations, evenly spread, LEARNING_ROWS in all or little more."""
    if rows <= LEARNING_ROWS or not groups.shape[1]:
        return np.linspace(0, rows - 1, min(rows, LEARNING_ROWS)).round().astype(np.intp)
    members = np.unique(groups[:, -1])
    step = rows / LEARNING_ROWS
    kept = members[np.unique((np.arange(0, len(members), step)).astype(np.intp))]
    return np.flatnonzero(np.isin(groups[:, -1], kept))


def _chunks(X: Floats) -> Iterator[Floats]:
    for start in range(0, len(X), 4 * CHUNK):
        yield X[start : start + 4 * CHUNK]
