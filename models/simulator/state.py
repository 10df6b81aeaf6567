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
        # Where it stands: its clock, decode steps so far, free blocks, how many of them keep prefixes of sessions, and
        # the sessions whose prefixes were used longest ago and last.
        ("now_s", np.float64),
        ("step", np.int64),
        ("free", np.int64),
        ("kept", np.int64),
        ("kept_first", np.int64),
        ("kept_last", np.int64),
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
        # Under a rule that predicts: how observed over predicted latencies follow what is seen.
        ("gain", np.float64),
        ("least_ratio", np.float64),
        ("most_ratio", np.float64),
        # Requests as if given before it came up, so that it does not catch up with the others in turn.
        ("excused", np.float64),
        # Seconds in iterations, and seconds up without any.
        ("busy_s", np.float64),
        ("idle_s", np.float64),
        ("energy_j", np.float64),
        # Width of a bin of the series, which is that of all.
        ("bin_s", np.float64),
    ]
)

SEEN = np.dtype(
    [
        # Requests that this router sent there, and how many the engine said, when it was asked last, that others did.
        ("in_flight", np.int64),
        ("others", np.int64),
        # Of its own: prompt tokens without a first token, and tokens expected of all.
        ("waiting_tokens", np.float64),
        ("held_tokens", np.float64),
        # What the iteration that ends at `until_s` takes off: requests, and both tokens. It is there until then.
        ("until_s", np.float64),
        ("ended", np.int64),
        ("first_tokens", np.float64),
        ("ended_tokens", np.float64),
        # Observed over predicted latencies.
        ("ttft_ratio", np.float64),
        ("tpot_ratio", np.float64),
    ]
)
"""A replica as one router sees it."""

HOME = np.dtype([("replica", np.int64), ("tokens", np.int64)])
"""Which replica served the last turn of a session, as one router knows it, and that prompt's tokens; 0: none."""

KEPT = np.dtype([("blocks", np.int64), ("before", np.int64), ("after", np.int64)])
"""Blocks of a session's prefix that a replica keeps, and the sessions before and after in the order of last use."""

REQUEST = np.dtype(
    [
        ("row", np.int64),
        ("bucket", np.int64),
        ("session", np.int64),  # -1: none
        ("router", np.int64),  # that sent it by a rule; -1: none
        ("arrival_s", np.float64),
        ("sent_s", np.float64),
        ("first_s", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        ("cached", np.int64),  # tokens of the prompt that its replica had kept
        # Tokens in the cache and tokens generated, both as of the step `joined` for one that decodes; -1 for others.
        ("computed", np.int64),
        ("generated", np.int64),
        ("joined", np.int64),
        ("prefilled", np.int64),  # 1: its cache came with it
        ("preemptions", np.int64),
        # What its router predicted: latencies, prompt tokens to prefill, and tokens in all.
        ("ttft_s", np.float64),
        ("tpot_s", np.float64),
        ("waiting", np.float64),
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
        ("cached", np.int64),
        ("arrival_s", np.float64),
        ("deferred_s", np.float64),  # that it waited with its router, for the sake of the policy
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
