"""Layout of the arrays that the compiled loop works on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]
"""An array of records."""

SERIES_BINS = 512

REPLICA = np.dtype(
    [
        # What it is.
        ("kind", np.int64),
        ("weight", np.float64),
        ("blocks", np.int64),
        ("block_tokens", np.int64),
        ("max_tokens", np.int64),
        ("max_sequences", np.int64),
        ("max_context", np.int64),
        ("chunked", np.int64),
        ("group", np.int64),
        # When it takes requests: the window that is open, or the next; and its number.
        ("up_s", np.float64),
        ("down_s", np.float64),
        ("window", np.int64),
        # Where it stands: its clock, decode steps so far, and free blocks.
        ("now_s", np.float64),
        ("step", np.int64),
        ("free", np.int64),
        # Sequences that run, those of them that decode, and the KV tokens of the latter.
        ("running", np.int64),
        ("decoding", np.int64),
        ("kv_tokens", np.int64),
        # Places in the pool: the queue's ends, the last that runs, and the one whose prompt is prefilled in part.
        ("waiting_head", np.int64),
        ("waiting_tail", np.int64),
        ("last", np.int64),
        ("partial", np.int64),
        # Requests here, given so far, and finished by the last iteration.
        ("outstanding", np.int64),
        ("assigned", np.int64),
        ("finished", np.int64),
        # Under a rule that predicts: prompt tokens without a first token, tokens expected of all that are here, and how
        # many of each the last iteration took off; observed over predicted latencies, and how they follow.
        ("waiting_tokens", np.float64),
        ("held_tokens", np.float64),
        ("first_tokens", np.float64),
        ("ended_tokens", np.float64),
        ("ttft_ratio", np.float64),
        ("tpot_ratio", np.float64),
        ("gain", np.float64),
        ("least_ratio", np.float64),
        ("most_ratio", np.float64),
        # Requests as if given before it came up, so that it does not catch up with the others in turn.
        ("excused", np.float64),
        # Seconds in iterations, and seconds up without any.
        ("busy_s", np.float64),
        ("idle_s", np.float64),
        ("energy_j", np.float64),
    ]
)

REQUEST = np.dtype(
    [
        ("row", np.int64),
        ("bucket", np.int64),
        ("arrival_s", np.float64),
        ("first_s", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        # Tokens in the cache and tokens generated, both as of the step `joined` for one that decodes; -1 for others.
        ("computed", np.int64),
        ("generated", np.int64),
        ("joined", np.int64),
        ("prefilled", np.int64),  # 1: its cache came with it
        ("preemptions", np.int64),
        # Latencies that were predicted, 0 where none was, and tokens that were expected.
        ("ttft_s", np.float64),
        ("tpot_s", np.float64),
        ("held", np.float64),
        ("previous", np.int64),
        ("next", np.int64),
    ]
)

COMPLETION = np.dtype(
    [
        ("row", np.int64),
        ("bucket", np.int64),
        ("replica", np.int64),  # -1: none could take it
        ("preemptions", np.int64),
        ("arrival_s", np.float64),
        ("ttft_s", np.float64),
        ("tpot_s", np.float64),
        ("e2e_s", np.float64),
    ]
)


def free_pool(size: int, first: int = 0) -> NDArray[Any]:
    """Return `size` free places, linked, for a pool in which they start at `first`."""
    pool = np.zeros(size, REQUEST)
    pool["next"] = np.arange(first + 1, first + size + 1)
    pool["next"][-1:] = -1
    return pool
