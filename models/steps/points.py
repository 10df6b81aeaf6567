"""Timed iterations of many deployments: what a step-time surrogate learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.models.profiled import codes_of, deployment_of, keys_of, numbers_of
from qplan.models.steptimes import Bools, Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class StepPoints:
    """N timed iterations of D deployments.

    Attributes
    ----------
    deployments : (D,)
    index : (N,)
        Which of them.
    prefill_tokens, batch, kv_tokens : (N,)
        Prompt tokens over all prompts; decoding sequences; KV-cache tokens of these together.
    prompts : (N,)
        Prompts, of equal length, that the prompt tokens belong to; at least 1.
    time_s : (N,)
        Seconds.
    """

    deployments: tuple[Deployment, ...]
    index: Ints
    prefill_tokens: Floats
    batch: Floats
    kv_tokens: Floats
    prompts: Floats
    time_s: Floats

    def __post_init__(self) -> None:
        """Check lengths and values; raise :class:`InputError`."""
        arrays = (self.index, self.prefill_tokens, self.batch, self.kv_tokens, self.prompts, self.time_s)
        if len({len(array) for array in arrays}) != 1:
            raise InputError(f"timed iterations: arrays of lengths {sorted({len(a) for a in arrays})}; expected one")
        if len(self.index) and not 0 <= self.index.min() <= self.index.max() < len(self.deployments):
            raise InputError(f"timed iterations: an index is not among the {len(self.deployments)} deployments")
        bad = ~np.isfinite(self.time_s) | (self.time_s <= 0)
        if bad.any():
            where = self.deployments[self.index[int(np.flatnonzero(bad)[0])]]
            raise InputError(f"timed iterations: a time of {where} is not above 0 s")

    @classmethod
    def of_table(cls, table: pa.Table, where: str) -> StepPoints:
        """Take the prefill and decode rows with status ok of a pack or store.

        Parameters
        ----------
        table
            Rows with (at least) the columns :data:`qplan.models.profiled.COLUMNS`.
        where
            Where they come from, for messages.

        Raises
        ------
        StoreError
            When there is no such row.
        InputError
            When a model, GPU or quantization is unknown to the catalogue.
        """
        phase, phases = codes_of(table, "phase")
        status, statuses = codes_of(table, "status")
        kinds, states = np.array(phases, dtype=object)[phase], np.array(statuses, dtype=object)[status]
        chosen = np.isin(kinds, ("prefill", "decode")) & (states == "ok")
        if not chosen.any():
            raise StoreError(f"{where} has no prefill or decode row with status ok")
        good = table.filter(chosen)
        keys, index = keys_of(good)
        prefill = kinds[chosen] == "prefill"
        batch = numbers_of(good, "batch")
        return cls(
            tuple(deployment_of(key, where) for key in keys),
            index,
            np.where(prefill, batch * numbers_of(good, "input_tokens"), 0.0),
            np.where(prefill, 0.0, batch),
            np.where(prefill, 0.0, batch * numbers_of(good, "context_tokens")),
            np.where(prefill, batch, 1.0),
            numbers_of(good, "step_time_s"),
        )

    def take(self, chosen: Bools) -> StepPoints:
        """Return the points where `chosen` (N,) is true, of the same deployments."""
        names = ("index", "prefill_tokens", "batch", "kv_tokens", "prompts", "time_s")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def __len__(self) -> int:
        """Count the points."""
        return len(self.index)
