"""Fits the step-time surrogate to timed iterations.

At each branch of the tree the factors minimise the squared *relative* errors of the branch's points plus a penalty
on departing from the factors of the branch above, all factors at least 0::

    min  Σ (columns · f / time - 1)²  +  λ Σ ((f - f₀) / max(f₀, s))²

A branch with many points goes its own way, one with few stays near its relatives, and a part that no point exercises
keeps the factor from above. At the top one efficiency a kind of part is learned first (all bands of the linear layers
together, ...), so that a band without points follows the others. Non-negative least squares (Lawson & Hanson,
*Solving Least Squares Problems*, 1974, chapter 23) of as many rows as parts: the points enter by their normal matrix.
What a deployment's decode iterations then still lack is kept beside (:mod:`qplan.models.steps.residual`).
"""

from __future__ import annotations

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steps.parts import KINDS, NOMINAL, Parts
from qplan.models.steps.points import StepPoints
from qplan.models.steps.residual import DecodeResidual
from qplan.models.steps.surrogate import LEVELS, Branch, StepSurrogate, branch_of
from qplan.models.steptimes import Floats

# A factor that doubles costs as much as one point's error of sqrt(λ). Chosen on held-out points of the A100.
_PENALTY = 1e-4
_SMALLEST_SCALE = 0.1  # of a factor: those that start at 0 can move too


def fit_steps(points: StepPoints) -> StepSurrogate:
    """Fit the factors of all branches that `points` belong to.

    Raises
    ------
    InputError
        When there are no points, or scikit-learn's extra, which brings SciPy, is not installed.
    """
    if not len(points):
        raise InputError("no timed iterations to fit step times to; expected prefill and decode rows")
    normal = {branch_of(points.deployments[d]): _normal(points, d) for d in np.unique(points.index)}
    factors: dict[Branch, Floats] = {(): NOMINAL}
    depths = [depth for depth in sorted(LEVELS) if depth]
    for above, depth in zip((0, *depths[:-1]), depths, strict=True):
        for branch in dict.fromkeys(whole[:depth] for whole in normal):
            matrix = np.sum([mine for whole, mine in normal.items() if whole[:depth] == branch], axis=0)
            start = factors[branch[:above]]
            factors[branch] = _shrunk(matrix, _by_kind(matrix, start) if depth == depths[0] else start)
    del factors[()]
    residuals = {branch_of(points.deployments[d]): _residual(points, d, factors) for d in np.unique(points.index)}
    return StepSurrogate(factors, {branch: found for branch, found in residuals.items() if found is not None})


def _residual(points: StepPoints, deployment: int, factors: dict[Branch, Floats]) -> DecodeResidual | None:
    """Return what one deployment's pure decode iterations take beyond its fitted parts."""
    mine = (points.index == deployment) & (points.batch > 0) & (points.prefill_tokens == 0)
    one, batch, kv_tokens = points.deployments[deployment], points.batch[mine], points.kv_tokens[mine]
    summed = Parts.of(one).time_s(factors[branch_of(one)], np.zeros(len(batch)), batch, kv_tokens)
    return DecodeResidual.of(batch, kv_tokens / batch, np.log(points.time_s[mine] / summed))


def _normal(points: StepPoints, deployment: int) -> Floats:
    """Return the normal matrix, (M + 1, M + 1), of one deployment's relative errors; the last column is the target."""
    mine = points.index == deployment
    columns = Parts.of(points.deployments[deployment]).columns(
        points.prefill_tokens[mine], points.batch[mine], points.kv_tokens[mine], points.prompts[mine]
    )
    relative = np.column_stack([columns / points.time_s[mine, None], np.ones(int(mine.sum()))])
    matrix: Floats = relative.T @ relative
    return matrix


def _by_kind(matrix: Floats, start: Floats) -> Floats:
    """Fit one factor to each kind of part, as a multiple of `start`."""
    names = list(dict.fromkeys(KINDS))
    ties = np.zeros((len(matrix), len(names) + 1))
    ties[np.arange(len(KINDS)), [names.index(kind) for kind in KINDS]] = np.where(start > 0, start, 0.0)
    ties[-1, -1] = 1
    multiples = _shrunk(ties.T @ matrix @ ties, np.ones(len(names)))
    tied: Floats = ties[:-1, :-1] @ multiples
    return tied


def _shrunk(matrix: Floats, start: Floats) -> Floats:
    """Solve the problem of the module's docstring for one branch."""
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise InputError("fitting step times needs SciPy: pip install 'qplan[models]'") from None
    scale = np.maximum(start, _SMALLEST_SCALE)
    departure = np.column_stack([np.diag(1 / scale), start / scale])
    whole = matrix + _PENALTY * departure.T @ departure
    # A square root of the matrix stands for all rows: |R f - r|² differs from the sum by a constant.
    upper = np.linalg.cholesky(whole[:-1, :-1] / np.outer(1 / scale, 1 / scale)).T
    right = np.linalg.solve(upper.T, whole[:-1, -1] * scale)
    solution, _ = nnls(upper, right, maxiter=50 * len(start))
    factors: Floats = solution * scale
    return factors
