"""What one replica is, to the simulator: how long iterations take, what fits, and how its engine batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qplan.core.deployment import MAX_BATCHED_TOKENS, MAX_SEQUENCES, Deployment
from qplan.core.errors import InputError
from qplan.models.iterations import IterationGrid
from qplan.models.steptimes import Floats


@dataclass(frozen=True, slots=True)
class Batching:
    """How an engine forms iterations.

    Attributes
    ----------
    max_batched_tokens
        Most tokens of an iteration, prefilled and generated together (vLLM ``max_num_batched_tokens``, TensorRT-LLM
        ``max_num_tokens``).
    max_sequences
        Most sequences that run at once (``max_num_seqs``, ``max_batch_size``).
    block_tokens
        Tokens of a block of the paged KV cache: 16 in vLLM, 32 in TensorRT-LLM.
    chunked_prefill
        Prefill prompts in pieces beside decoding sequences (vLLM V1); else whole prompts, while everything else stands
        still (vLLM V0, TensorRT-LLM without chunked context).
    """

    max_batched_tokens: int = MAX_BATCHED_TOKENS
    max_sequences: int = MAX_SEQUENCES
    block_tokens: int = 16
    chunked_prefill: bool = True

    def __post_init__(self) -> None:
        for field in ("max_batched_tokens", "max_sequences", "block_tokens"):
            if getattr(self, field) < 1:
                raise InputError(f"batching: {field} is {getattr(self, field)}; expected at least 1")
        if self.max_sequences > self.max_batched_tokens:
            raise InputError(
                f"batching: max_sequences {self.max_sequences} is more than max_batched_tokens "
                f"{self.max_batched_tokens}; expected a token for each sequence"
            )


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica.

    Attributes
    ----------
    name
        For people.
    times
        Time of its iterations.
    kv_tokens
        Tokens that its KV cache holds; whole blocks of them are used.
    max_context
        Longest sequence that the model takes, prompt and output together.
    weight
        Its part of the requests relative to the other replicas.
    power_w : (P, B, C)
        Watts during the iterations of `times`; ``None`` where unknown.
    idle_w
        Watts between iterations.
    kv_bytes_per_token
        KV cache of a token over all its GPUs, which is what a transfer to another replica sends.
    up_s
        When it takes requests: (from, to) in seconds, in order and apart. After each it serves what it holds, then is
        off, or asleep.
    asleep_w
        Watts outside of these times, but for what it still serves.
    """

    name: str
    times: IterationGrid
    kv_tokens: int
    max_context: int
    batching: Batching = Batching()
    weight: float = 1.0
    power_w: Floats | None = None
    idle_w: float | None = None
    kv_bytes_per_token: float | None = None
    up_s: tuple[tuple[float, float], ...] = ((0.0, np.inf),)
    asleep_w: float = 0.0

    def __post_init__(self) -> None:
        if self.kv_tokens < self.batching.block_tokens:
            raise InputError(f"{self.name}: a KV cache of {self.kv_tokens} tokens holds no block")
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise InputError(f"{self.name}: weight {self.weight:g}; expected more than 0")
        if (self.power_w is None) != (self.idle_w is None):
            raise InputError(f"{self.name}: power needs both the watts of iterations and those between them")
        if self.power_w is not None and self.power_w.shape != self.times.time_s.shape:
            raise InputError(
                f"{self.name}: watts of shape {self.power_w.shape}; iteration times have {self.times.time_s.shape}"
            )
        times_s = [0.0, *(time_s for window in self.up_s for time_s in window)]
        if (
            any(not start_s <= end_s for start_s, end_s in pairwise(times_s))
            or len(set(times_s[1:])) < len(times_s) - 1
        ):
            raise InputError(f"{self.name}: up_s is {self.up_s}; expected (from, to) in seconds, in order and apart")

    def up_by_s(self, times_s: Floats) -> Floats:
        """Return how many seconds it has been up by each of `times_s` (N,)."""
        windows = np.reshape(self.up_s, (-1, 2))
        up: Floats = np.clip(times_s[:, None] - windows[:, 0], 0.0, windows[:, 1] - windows[:, 0]).sum(axis=1)
        return up

    @classmethod
    def of(
        cls,
        deployment: Deployment,
        times: IterationGrid,
        batching: Batching | None = None,
        *,
        kv_tokens: int | None = None,
        weight: float = 1.0,
        power_w: Floats | None = None,
        idle_w: float | None = None,
    ) -> Replica:
        """Make a replica of a deployment, whose memory decides how many tokens are cached unless `kv_tokens` says.

        Raises
        ------
        InputError
            The deployment does not fit its GPUs.
        """
        if kv_tokens is None:
            refusal = deployment.refusal()
            if refusal is not None:
                raise InputError(refusal)
            kv_tokens = deployment.memory().kv_tokens
        return cls(
            deployment.name,
            times,
            kv_tokens,
            deployment.model.max_context,
            batching or default_batching(times),
            weight,
            power_w,
            idle_w,
            deployment.kv_bytes_per_token * deployment.tp,
        )


def default_batching(times: IterationGrid) -> Batching:
    """Return the defaults, with no more sequences at once than there are times for."""
    return Batching(max_sequences=int(min(MAX_SEQUENCES, times.batches[-1])))
