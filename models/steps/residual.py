"""What a deployment's own decode iterations take beyond the sum of its parts, kept monotone.

Attention kernels change their split of the work with batch and context together, which a sum of parts cannot follow.
Where a deployment's decode iterations were timed on a grid, the ratio of measured to summed time is interpolated on
it, logarithmically; outside it fades, by a fifth for each doubling, so that physics extrapolates.

To stay monotone the time is split: what belongs to tokens (weights, linear layers, all-reduces), which never falls, and
the rest, tabulated over batch and context and made monotone: half-way between its running maximum from below and its
running minimum from above. Reading linearly between points keeps that. A time so corrected never falls with prompt
tokens, with contexts, nor with sequences of the same mean context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.steps.parts import Parts
from qplan.models.steptimes import Floats

_FADING = 0.8  # per doubling outside the grid; chosen on held-out points of the A100
_FAR_BATCHES = 2.0 ** np.arange(0, 14)
_FAR_CONTEXTS = 2.0 ** np.arange(0, 22)


@dataclass(frozen=True, slots=True)
class DecodeResidual:
    """Logarithm of measured over summed time, on the grid where one deployment's decode iterations were timed.

    Attributes
    ----------
    batches : (B,), contexts : (C,)
        Sequences, and KV-cache tokens of each; two or more of either.
    log_ratio : (B, C)
    """

    batches: Floats
    contexts: Floats
    log_ratio: Floats

    @classmethod
    def of(cls, batch: Floats, context: Floats, log_ratio: Floats) -> DecodeResidual | None:
        """Make it of N points, all (N,); ``None`` where they span no grid.

        Repeated points are averaged, and cells without a point take what their neighbours have.
        """
        batches, row = np.unique(batch, return_inverse=True)
        contexts, column = np.unique(context, return_inverse=True)
        if len(batches) < 2 or len(contexts) < 2:
            return None
        total, count = np.zeros((2, len(batches), len(contexts)))
        np.add.at(total, (row, column), log_ratio)
        np.add.at(count, (row, column), 1)
        mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        filled = np.stack([_filled(np.log(contexts), lane) for lane in mean])
        # A ten-thousandth is less than any timing tells; files of it are a third as large.
        return cls(batches, contexts, np.round(filled, 4))

    def rest_s(self, parts: Parts, factors: Floats, batch: Floats, kv_tokens: Floats) -> Floats:
        """Return what decoding takes beyond :meth:`Parts.of_tokens`, (N,) seconds, for `batch` and `kv_tokens` (N,)."""
        batches = np.union1d(self.batches, _FAR_BATCHES)
        contexts = np.union1d(self.contexts, _FAR_CONTEXTS)
        b, c = (axis.ravel() for axis in np.meshgrid(batches, contexts, indexing="ij"))
        nothing = np.zeros(len(b))
        corrected = parts.time_s(factors, nothing, b, b * c) * np.exp(self._faded(b, c))
        rest = (corrected - parts.time_s(parts.of_tokens(factors), nothing, b, b * c)).reshape(len(batches), -1)
        table = np.vstack([np.zeros(len(contexts)), _monotone(np.maximum(rest, 0.0))])
        context = np.divide(kv_tokens, batch, out=np.zeros(np.shape(batch)), where=np.asarray(batch) > 0)
        found: Floats = _bilinear(np.append(0.0, batches), contexts, table, batch, np.maximum(context, contexts[0]))
        return found

    def _faded(self, batch: Floats, context: Floats) -> Floats:
        b, c = np.clip(batch, *self.batches[[0, -1]]), np.clip(context, *self.contexts[[0, -1]])
        inside = _bilinear(np.log(self.batches), np.log(self.contexts), self.log_ratio, np.log(b), np.log(c))
        faded: Floats = inside * _FADING ** (np.abs(np.log2(batch / b)) + np.abs(np.log2(context / c)))
        return faded


def _filled(axis: Floats, lane: Floats) -> Floats:
    """Interpolate the NaNs of `lane` over `axis`, the end values held."""
    known = np.isfinite(lane)
    filled: Floats = np.interp(axis, axis[known], lane[known])
    return filled


def _monotone(table: Floats) -> Floats:
    """Return a table that never falls along either axis, nearest to `table` on both sides."""
    above = np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)
    below = np.minimum.accumulate(np.minimum.accumulate(table[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
    middle: Floats = (above + below) / 2
    return middle


def _bilinear(rows: Floats, columns: Floats, table: Floats, row: Floats, column: Floats) -> Floats:
    """Read `table` linearly between `rows` and `columns` at N places, the last segments prolonged."""
    i = np.clip(np.searchsorted(rows, row, side="right") - 1, 0, len(rows) - 2)
    j = np.clip(np.searchsorted(columns, column, side="right") - 1, 0, len(columns) - 2)
    u, v = (row - rows[i]) / (rows[i + 1] - rows[i]), (column - columns[j]) / (columns[j + 1] - columns[j])
    low = table[i, j] * (1 - v) + table[i, j + 1] * v
    high = table[i + 1, j] * (1 - v) + table[i + 1, j + 1] * v
    read: Floats = low * (1 - u) + high * u
    return read
