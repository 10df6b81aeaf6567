"""Iteration times of deployments on dense grids, interpolated.

One engine iteration either prefills prompts or advances every running sequence by a token. A profile holds the time
of such iterations at grid points; this module stacks the profiles of many deployments into arrays and reads between
the points. Decode times are interpolated linearly in batch and in context, the variables in which memory traffic is
linear; prefill times linearly in tokens. Both keep the monotonicity of the grid. Beyond the grid the last segment is
prolonged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qplan.core.errors import StoreError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """How an engine's TTFT departs from what its step times say, for D deployments; arrays are (D,).

    Attributes
    ----------
    prefill, step, queue, slots
        Factors of the parts of TTFT: the own prefill, what is left of the running iteration, the wait for prefills
        ahead, and that for KV-cache room.
    host_s
        What comes on top of every request's.
    """

    prefill: Floats
    step: Floats
    queue: Floats
    slots: Floats
    host_s: Floats

    @classmethod
    def plain(cls, deployments: int) -> FirstToken:
        """Return the TTFT that step times alone give."""
        one = np.ones(deployments)
        return cls(one, one, one, one, np.zeros(deployments))

    @property
    def parts(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """All arrays, in the order of the fields."""
        return self.prefill, self.step, self.queue, self.slots, self.host_s

    def take(self, index: Ints) -> FirstToken:
        """Return those of the deployments at `index` alone."""
        return FirstToken(*(part[index] for part in self.parts))

    def put(self, index: Ints, found: FirstToken) -> FirstToken:
        """Return these with `found` for the deployments at `index`."""
        whole = [part.copy() for part in self.parts]
        for part, values in zip(whole, found.parts, strict=True):
            part[index] = values
        return FirstToken(*whole)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Step times in seconds of D deployments.

    Attributes
    ----------
    prefill_tokens : (P,)
        Prompt tokens of an iteration that prefills one sequence.
    prefill_s : (D, P)
        Its time.
    batches : (B,), contexts : (C,)
        Sequences of a decode iteration, and KV-cache tokens of each.
    decode_s : (D, B, C)
        Its time.
    first_token
        How TTFT departs from these times, where measurements have told; ``None``: it follows from them.
    """

    prefill_tokens: Floats
    prefill_s: Floats
    batches: Floats
    contexts: Floats
    decode_s: Floats
    first_token: FirstToken | None = None

    @classmethod
    def from_points(
        cls,
        deployments: int,
        prefill: tuple[Ints, Floats, Floats],
        decode: tuple[Ints, Floats, Floats, Floats],
        names: Sequence[str],
    ) -> StepTimes:
        """Stack measured points into grids.

        Parameters
        ----------
        deployments
            D.
        prefill
            Deployment index, prompt tokens and time of each prefill point of batch 1.
        decode
            Deployment index, batch, context and time of each decode point.
        names : (D,)
            For messages.

        Raises
        ------
        StoreError
            When a deployment has no prefill or no decode point.

        Notes
        -----
        Points that a profile lacks (a batch whose KV cache did not fit) are filled by prolonging the deployment's own
        times, first over contexts, then over batches.
        """
        index, tokens, times = prefill
        prefill_axis, column = np.unique(tokens, return_inverse=True)
        prefill_s = np.full((deployments, len(prefill_axis)), np.nan)
        prefill_s[index, column] = times
        _require_points(prefill_s, names, "prefill (batch 1)")

        index, batch, context, times = decode
        batch_axis, row = np.unique(batch, return_inverse=True)
        context_axis, column = np.unique(context, return_inverse=True)
        decode_s = np.full((deployments, len(batch_axis), len(context_axis)), np.nan)
        decode_s[index, row, column] = times
        _require_points(decode_s, names, "decode")
        decode_s = _fill(decode_s, context_axis)
        decode_s = np.swapaxes(_fill(np.swapaxes(decode_s, 1, 2), batch_axis), 1, 2)
        # Prolonged segments of different lanes may cross; a larger iteration never takes less.
        decode_s = np.maximum.accumulate(np.maximum.accumulate(decode_s, axis=2), axis=1)
        return cls(prefill_axis, _fill(prefill_s, prefill_axis), batch_axis, context_axis, decode_s)

    def take(self, index: Ints) -> StepTimes:
        """Return the step times of the deployments at `index` alone."""
        first_token = None if self.first_token is None else self.first_token.take(index)
        return replace(self, prefill_s=self.prefill_s[index], decode_s=self.decode_s[index], first_token=first_token)

    def prefill(self, tokens: Floats) -> Floats:
        """Return the prefill time, (D, J) seconds, of prompts of `tokens` (J,)."""
        return _lerp(self.prefill_tokens, self.prefill_s, np.asarray(tokens, dtype=float))

    def decode_by_batch(self, context: float) -> Floats:
        """Return the decode time, (D, B) seconds, at every batch of the grid for sequences of `context` tokens."""
        return _lerp(self.contexts, self.decode_s, np.array([context]))[..., 0]


def _require_points(grid: Floats, names: Sequence[str], what: str) -> None:
    empty = np.isnan(grid).reshape(len(grid), -1).all(axis=1)
    if empty.any():
        raise StoreError(f"the profile of {names[int(np.flatnonzero(empty)[0])]} has no {what} row with status ok")


def _lerp(axis: Floats, values: Floats, at: Floats) -> Floats:
    """Interpolate `values` (..., A) over `axis` (A,) at `at` (J,), prolonging the end segments; never below 0."""
    if len(axis) == 1:
        return np.repeat(values, len(at), axis=-1)
    left = np.clip(np.searchsorted(axis, at) - 1, 0, len(axis) - 2)
    share = (at - axis[left]) / (axis[left + 1] - axis[left])
    # Below the grid a launch-bound iteration does not get cheaper: the first value holds.
    share = np.maximum(share, 0.0)
    result: Floats = values[..., left] * (1 - share) + values[..., left + 1] * share
    return result


def _fill(grid: Floats, axis: Floats) -> Floats:
    """Replace NaNs along the last axis of `grid` by interpolation, prolonging the last known segment."""
    lanes = grid.reshape(-1, grid.shape[-1]).copy()
    gaps, kind = np.unique(np.isnan(lanes), axis=0, return_inverse=True)
    for number, missing in enumerate(gaps):
        if missing.any() and not missing.all():
            alike = np.flatnonzero(kind.ravel() == number)
            known = lanes[np.ix_(alike, ~missing)]
            lanes[np.ix_(alike, missing)] = _lerp(axis[~missing], known, axis[missing])
    return lanes.reshape(grid.shape)
