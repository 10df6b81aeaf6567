"""What a measurement promises: expected gain of hypervolume, and the probability that no measured point dominates it.

Both are sums over the boxes that the measured front leaves free, exact for any number of axes whose losses are
independent: in a box the gain is a product over axes (Yang, Emmerich, Deutz, Baeck: Efficient computation of expected
hypervolume improvement using box decomposition algorithms, Journal of Global Optimization 2019, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MOST_TERMS = 4_000_000  # numbers held at once


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of one axis' loss of each of N candidates: a mixture of H normal distributions.

    Attributes
    ----------
    weights
        (H,), of sum 1.
    means, stds
        (H, N); a std of 0 is a loss that is known.
    """

    weights: Floats
    means: Floats
    stds: Floats

    @property
    def mean(self) -> Floats:
        """Expected loss, (N,)."""
        mean: Floats = self.weights @ self.means
        return mean

    def take(self, among: NDArray[np.intp]) -> Belief:
        """Return the belief of some of the candidates."""
        return Belief(self.weights, self.means[:, among], self.stds[:, among])

    def doubted(self, doubt: float) -> Belief:
        """Return the belief whose deviations are off by a common factor: log-normal, of 1 at the median.

        Parameters
        ----------
        doubt
            Standard deviation of the factor's logarithm, over which Gauss and Hermite's rule of three points averages.
        """
        factors = np.exp(doubt * np.sqrt(3) * np.array([-1, 0, 1]))
        weights = np.outer([1 / 6, 2 / 3, 1 / 6], self.weights).ravel()
        return Belief(weights, np.tile(self.means, (3, 1)), np.concatenate([factor * self.stds for factor in factors]))

    def gain_below(self, edges: Floats) -> Floats:
        """Return how far the loss is expected to fall below each edge, ``E[max(edge - loss, 0)]``, (N, E)."""
        from scipy.special import ndtr

        total = np.zeros((self.means.shape[1], len(edges)))
        finite = np.isfinite(edges)
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            below = edges[finite] - mean[:, None]
            spread = np.maximum(std, 1e-12)[:, None]
            t = below / spread
            total[:, finite] += weight * (below * ndtr(t) + spread * np.exp(-t * t / 2) / np.sqrt(2 * np.pi))
        return np.maximum(total, 0.0)

    def below(self, edges: Floats, worse_than: Floats | None = None) -> Floats:
        """Return the probability that the loss is below each edge, (N, E).

        Parameters
        ----------
        worse_than
            (N,): losses are known to be at least this; ``-inf`` where nothing is known.
        """
        from scipy.special import ndtr

        total = np.zeros((self.means.shape[1], len(edges)))
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            spread = np.maximum(std, 1e-12)[:, None]
            share = ndtr((edges - mean[:, None]) / spread)
            if worse_than is not None:
                out = ndtr((worse_than - mean) / spread[:, 0])[:, None]
                # Beyond what the belief held possible, the loss is where the bound is.
                at_bound = (edges > worse_than[:, None]).astype(float)
                share = np.where(out > 1 - 1e-9, at_bound, np.clip((share - out) / np.maximum(1 - out, 1e-9), 0, 1))
            total += weight * share
        return total


def expected_gain(beliefs: Sequence[Belief], boxes: tuple[Floats, Floats]) -> Floats:
    """Return the expected gain of hypervolume of measuring each candidate, (N,); `boxes` as of ``free_boxes``."""
    return _over_boxes(boxes, lambda m, edges: beliefs[m].gain_below(edges))


def escape_probability(
    beliefs: Sequence[Belief], boxes: tuple[Floats, Floats], worse_than: Floats | None = None
) -> Floats:
    """Return the probability that no measured point dominates a candidate and it is within the reference, (N,).

    Parameters
    ----------
    worse_than
        (N, M): bounds that losses are known to be at or above, ``-inf`` where nothing is known.
    """

    def below(m: int, edges: Floats) -> Floats:
        return beliefs[m].below(edges, None if worse_than is None else worse_than[:, m])

    return np.minimum(_over_boxes(boxes, below), 1.0)


def _over_boxes(boxes: tuple[Floats, Floats], upto: Callable[[int, Floats], Floats]) -> Floats:
    """Sum over boxes the product over axes of ``upto(axis, upper) - upto(axis, lower)``, each (N, edges)."""
    lower, upper = boxes
    count = len(lower)
    ends = []
    for m in range(lower.shape[1]):
        edges, place = np.unique(np.concatenate([lower[:, m], upper[:, m]]), return_inverse=True)
        ends.append((upto(m, edges), place[:count], place[count:]))
    total = np.zeros(len(ends[0][0]))
    step = max(1, _MOST_TERMS // max(1, len(total)))
    for first in range(0, count, step):
        some = slice(first, first + step)
        product = np.ones((len(total), 1))
        for values, low, high in ends:
            product = product * (values[:, high[some]] - values[:, low[some]])
        total += product.sum(axis=1)
    return total
