"""Iteration times of deployments whose prefill and decode iterations were profiled apart."""

from __future__ import annotations

import numpy as np

from qplan.models.iterations import IterationGrid
from qplan.models.steptimes import Floats, StepTimes


def grid_of(steps: StepTimes, index: int) -> IterationGrid:
    """Return the iteration times of one deployment of `steps`.

    Notes
    -----
    A mixed iteration takes what its decode and its prefill would take apart, less the fixed part that they share: the
    weights are read, and kernels launched, once. The fixed part is the time of the smallest decode iteration, one
    sequence of the shortest context. This is the saving for which chunked prefill lets decodes ride along with
    prefills (Agrawal et al., *Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve*, OSDI 2024,
    section 4): their KV cache still has to be read and the prompt's operations done, but the linear layers run once.
    It is an upper estimate, as one may hide behind the other.

    Below the smallest profiled prompt or batch an iteration is bound by launches and weights: the first time holds.
    """
    prefill = np.maximum.accumulate(steps.prefill_s[index])
    decode = np.maximum.accumulate(np.maximum.accumulate(steps.decode_s[index], axis=0), axis=1)
    tokens, prefill = _from_one(steps.prefill_tokens, prefill)
    batches, decode = _from_one(steps.batches, decode)
    contexts = steps.contexts
    if len(contexts) == 1:
        contexts, decode = np.array([contexts[0], contexts[0] + 1]), np.repeat(decode, 2, axis=1)
    time = np.zeros((len(tokens) + 1, len(batches) + 1, len(contexts)))
    time[0, 1:] = decode
    time[1:, 0] = prefill[:, None]
    # What is taken off and added again may come back a digit short of the prefill alone.
    time[1:, 1:] = np.maximum(decode + np.maximum(prefill - decode[0, 0], 0.0)[:, None, None], prefill[:, None, None])
    return IterationGrid(np.concatenate([[0.0], tokens]), np.concatenate([[0.0], batches]), contexts, time)


def _from_one(axis: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Let `values` (A, ...) over `axis` begin at one."""
    if axis[0] <= 1:
        return axis, values
    return np.concatenate([[1.0], axis]), np.concatenate([values[:1], values])
