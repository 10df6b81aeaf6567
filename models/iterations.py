"""Times of engine iterations on a grid: what surrogates make and the simulator runs on.

With chunked prefill one iteration advances decoding sequences and prefills prompt tokens together, so its time is a
function of three variables. A surrogate of any kind is tabulated once; reading between the points is the same, and as
fast, for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.core.errors import InputError
from qplan.models.steptimes import Floats, Ints


@dataclass(frozen=True, slots=True)
class IterationGrid:
    """Time of one iteration of one replica by what is in it.

    Between the points time is linear in each variable (trilinear); beyond them the last segment is prolonged. It
    never falls along an axis, and an iteration with nothing in it takes no time.

    Attributes
    ----------
    prefill_tokens : (P,)
        Prompt tokens that the iteration prefills, over all sequences; the first is 0.
    batches : (B,)
        Sequences that it gives one token each; the first is 0.
    context_tokens : (C,)
        KV-cache tokens of such a sequence, their mean.
    time_s : (P, B, C)
        Seconds.
    """

    prefill_tokens: Floats
    batches: Floats
    context_tokens: Floats
    time_s: Floats

    def __post_init__(self) -> None:
        """Check shapes, axes and monotonicity; raise :class:`InputError`."""
        axes = (self.prefill_tokens, self.batches, self.context_tokens)
        if self.time_s.shape != tuple(map(len, axes)):
            raise InputError(f"iteration times of shape {self.time_s.shape}; the axes say {tuple(map(len, axes))}")
        if self.prefill_tokens[0] != 0 or self.batches[0] != 0:
            raise InputError("the first prefill_tokens and the first of batches must be 0")
        if any(len(axis) < 2 or (np.diff(axis) <= 0).any() for axis in axes):
            raise InputError("each axis of iteration times needs two points or more, in rising order")
        if not np.isfinite(self.time_s).all() or any((np.diff(self.time_s, axis=n) < 0).any() for n in range(3)):
            raise InputError("iteration times must be finite and never fall along an axis")

    def at(self, prefill_tokens: Floats, batch: Floats, kv_tokens: Floats) -> Floats:
        """Return the time, (N,) seconds, of iterations; all arguments are (N,).

        Parameters
        ----------
        prefill_tokens, batch
            Prompt tokens and decoding sequences of the iteration.
        kv_tokens
            KV-cache tokens of all decoding sequences together.
        """
        context = np.divide(kv_tokens, batch, out=np.zeros(np.shape(batch)), where=np.asarray(batch) > 0)
        p, p_share = _locate(self.prefill_tokens, prefill_tokens)
        b, b_share = _locate(self.batches, batch)
        c, c_share = _locate(self.context_tokens, np.maximum(context, self.context_tokens[0]))
        time: Floats = np.zeros(np.shape(batch))
        for dp, wp in ((0, 1 - p_share), (1, p_share)):
            for db, wb in ((0, 1 - b_share), (1, b_share)):
                for dc, wc in ((0, 1 - c_share), (1, c_share)):
                    time += wp * wb * wc * self.time_s[p + dp, b + db, c + dc]
        return time


def _locate(axis: Floats, at: Floats) -> tuple[Ints, Floats]:
    """Return the segment of `axis` that each value lies in, or is nearest to, and its place along it."""
    left = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2)
    return left, (at - axis[left]) / (axis[left + 1] - axis[left])
