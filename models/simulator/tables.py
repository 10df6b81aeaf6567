"""Iteration times of several kinds of replicas in arrays of one shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qplan.models.simulator.replica import Replica
from qplan.models.steptimes import Floats, Ints

Tables = tuple[Floats, Floats, Floats, Floats]


def stacked(fleet: Sequence[Replica]) -> tuple[Tables, Ints]:
    """Tabulate time and energy of iterations at each whole number of decoding sequences.

    Returns
    -------
    tables
        Prefill tokens (K, P), contexts (K, C), times (K, P, S + 1, C) in seconds and energies of the same shape in
        joules, of the K kinds of replicas: those with the same times and power. Axes are brought to one length by
        prolonging their last segments, which is how grids are read beyond their ends.
    kinds : (R,)
        The kind of each replica.

    Notes
    -----
    The energy of an iteration, time x watts at the points of the grid, is interpolated like its time: what is read,
    sent and computed in an iteration adds up, and its energy with it. 0 where the watts are unknown.
    """
    kinds: dict[tuple[int, int], int] = {}
    members: list[Replica] = []
    index = []
    for replica in fleet:
        key = (id(replica.times), id(replica.power_w))
        if key not in kinds:
            kinds[key] = len(members)
            members.append(replica)
        index.append(kinds[key])
    batches = np.arange(max(replica.batching.max_sequences for replica in fleet) + 1, dtype=float)
    tokens = max(len(replica.times.prefill_tokens) for replica in members)
    contexts = max(len(replica.times.context_tokens) for replica in members)
    tables = [_tables(replica, batches, tokens, contexts) for replica in members]
    p, c, times, energies = (np.ascontiguousarray(np.stack(column)) for column in zip(*tables, strict=True))
    return (p, c, times, energies), np.array(index)


def _tables(replica: Replica, batches: Floats, tokens: int, contexts: int) -> Tables:
    grid = replica.times
    energy = np.zeros_like(grid.time_s) if replica.power_w is None else grid.time_s * replica.power_w
    left = np.clip(np.searchsorted(grid.batches, batches, side="right") - 1, 0, len(grid.batches) - 2)
    share = ((batches - grid.batches[left]) / (grid.batches[left + 1] - grid.batches[left]))[:, None]
    times, energies = (
        np.moveaxis(_prolonged(np.moveaxis(_prolonged(at, tokens), 2, 0), contexts), 0, 2)
        for at in ((1 - share) * values[:, left] + share * values[:, left + 1] for values in (grid.time_s, energy))
    )
    return _prolonged(grid.prefill_tokens, tokens), _prolonged(grid.context_tokens, contexts), times, energies


def _prolonged(values: Floats, length: int) -> Floats:
    """Continue `values` (A, ...) to `length` in the steps of their last two."""
    steps = np.arange(1, length - len(values) + 1).reshape(-1, *[1] * (values.ndim - 1))
    return np.concatenate([values, values[-1] + steps * (values[-1] - values[-2])])
