"""What serving a request takes a replica, in time and energy, by how many it serves at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.models.simulator.replica import Replica
from qplan.models.simulator.tables import stacked
from qplan.models.steptimes import Floats, Ints
from qplan.solvers.routing.lengths import Lengths


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What iterations of one replica take at the mean context of the mix; S sequences, B buckets.

    Attributes
    ----------
    step_s, step_j : (S + 1,)
        Of an iteration that decodes so many sequences.
    with_prefill_s, with_prefill_j : (B, S + 1)
        Of one that prefills a bucket's mean prompt too.
    steps : (B,)
    """

    step_s: Floats
    step_j: Floats
    with_prefill_s: Floats
    with_prefill_j: Floats
    steps: Floats

    @classmethod
    def of(cls, replica: Replica, lengths: Lengths) -> Work:
        """Read the iteration grid and the power of a replica."""
        (tokens, contexts, times, energies), _ = stacked([replica])
        context = np.clip(lengths.mean_context, contexts[0, 0], None)
        c = int(np.clip(np.searchsorted(contexts[0], context, side="right") - 1, 0, contexts.shape[1] - 2))
        share = (context - contexts[0, c]) / (contexts[0, c + 1] - contexts[0, c])
        time_s, energy_j = (
            (1 - share) * values[0, :, :, c] + share * values[0, :, :, c + 1] for values in (times, energies)
        )  # (P, S + 1)
        p = np.clip(np.searchsorted(tokens[0], lengths.input_tokens, side="right") - 1, 0, tokens.shape[1] - 2)
        part = ((lengths.input_tokens - tokens[0, p]) / (tokens[0, p + 1] - tokens[0, p]))[:, None]
        with_s, with_j = ((1 - part) * values[p] + part * values[p + 1] for values in (time_s, energy_j))
        return cls(time_s[0], energy_j[0], with_s, with_j, lengths.steps)

    def prefill_s(self, decoding: Ints) -> Floats:
        """Return what a prompt adds to iterations that decode so many (N,) sequences beside it, (N, B)."""
        added: Floats = (self.with_prefill_s[:, decoding] - self.step_s[decoding]).T
        return added

    def prefill_j(self, decoding: Ints) -> Floats:
        """Return the joules that a prompt adds, (N, B)."""
        added: Floats = (self.with_prefill_j[:, decoding] - self.step_j[decoding]).T
        return added

    def energy_j(self, decoding: Ints) -> Floats:
        """Return the joules of a request while so many (N,) are in flight: prefill and its part of decoding, (N, B)."""
        decode: Floats = self.steps * (self.step_j[decoding] / decoding)[:, None]
        return self.prefill_j(decoding) + decode
