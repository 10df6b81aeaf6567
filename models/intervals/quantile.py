"""Quantiles of conformal scores that hold for finite samples."""

from __future__ import annotations

import numpy as np

from qplan.models.steptimes import Floats, Ints


def conformal_quantile(scores: Floats, coverage: float, groups: Ints | None = None) -> float:
    """Return the bound that a further score stays below with probability `coverage` or more.

    The further score counts as one more case that may be anything, so few scores give an infinite bound.

    Parameters
    ----------
    scores : (N,)
        Scores of cases that the model behind them had not seen.
    coverage
        Between 0 and 1.
    groups : (N,), optional
        Group of each score. With it the further case is of a *further group*: groups are exchangeable, cases inside
        one are alike, and each group weighs the same however many cases it has. Without it cases are exchangeable.

    Notes
    -----
    Without groups this is the ceil((N + 1) coverage)-th smallest score (Vovk, Gammerman, Shafer 2005, section 2.2;
    Lei et al. 2018, section 2). With G groups the j-th one's scores weigh 1 / (n_j (G + 1)) each (pooled distribution
    functions, Dunn, Wasserman, Ramdas 2022, section 3; with the guarantee, Lee, Barber, Willett 2023, section 3).
    """
    if groups is None:
        weights = np.full(len(scores), 1 / (len(scores) + 1))
    else:
        weights = group_weights(groups) / (len(np.unique(groups)) + 1)
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) >= coverage - 1e-9
    return float(scores[order[np.argmax(reached)]]) if reached.any() else float("inf")


def group_weights(groups: Ints) -> Floats:
    """Return weights, (N,), that sum to one in each group."""
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights: Floats = 1 / counts[index]
    return weights
