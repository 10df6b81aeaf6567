"""Which points to measure: a small space-filling design over the candidates."""

from __future__ import annotations

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Floats, Ints


def choose(coordinates: Floats, count: int, seed: int | None = None) -> Ints:
    """Return `count` rows of the candidates, the most useful first.

    The first is the one nearest the middle; each next is the farthest from those chosen (maximin; Kennard & Stone
    1969), so that a user who stops early has a good design all the same.

    Parameters
    ----------
    coordinates : (N, F)
        Candidates in coordinates in which equal steps matter equally: logarithms of concurrency, lengths ...; each is
        scaled to its range.
    seed
        Distances are blurred by this generator: another near-best design for every seed. None chooses the best.

    Raises
    ------
    InputError
        There are fewer candidates than points.
    """
    if count > len(coordinates):
        raise InputError(f"{count} points asked of {len(coordinates)} candidates; expected at most {len(coordinates)}")
    if count < 1:
        return np.empty(0, dtype=np.intp)
    spans = np.ptp(coordinates, axis=0)
    places = (coordinates - coordinates.min(axis=0)) / np.where(spans > 0, spans, 1.0)
    blur = _Blur(seed)
    from_middle = ((places - np.median(places, axis=0)) ** 2).sum(axis=1)
    chosen = [int(np.argmin(from_middle + blur(len(places))))]
    while len(chosen) < count:
        nearest = ((places[:, None] - places[chosen][None]) ** 2).sum(axis=2).min(axis=1) + blur(len(places))
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen, dtype=np.intp)


class _Blur:
    """Squared distances to add, up to a tenth of a range's square; none without a seed."""

    def __init__(self, seed: int | None) -> None:
        self._random = None if seed is None else np.random.default_rng(seed)

    def __call__(self, count: int) -> Floats:
        return np.zeros(count) if self._random is None else self._random.uniform(0, 0.1, count)
