"""Iteration times of an engine that gains nothing from batching, fitted to its runs under load.

On a CPU every token of a small batch costs llama.cpp what it costs alone: an iteration takes ::

    (prompt + prompt_token · tokens)  if it prefills  +  sequence · decoding sequences

Three numbers, which runs at low load of two prompt lengths tell apart: TTFT is the first part, TPOT the second. The
step-time surrogate (:mod:`qplan.models.steps.surrogate`) cannot say them, as it stands on the data sheets of GPUs.
Left out are the context, which matters little while the KV cache is small beside the weights, and what larger batches
do gain: beyond four sequences decoding iterations of llama.cpp are shorter than this, at seven by a quarter or more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import MAX_BATCHED_TOKENS
from qplan.core.errors import InputError
from qplan.models.iterations import IterationGrid
from qplan.models.steptimes import Floats

Predict = Callable[[IterationGrid], tuple[Floats, Floats]]
"""From iteration times to the mean TTFT and TPOT, (N,) seconds, of N runs."""

_PROMPT_TOKENS = 2.0  # worth of a prompt's fixed part, weakly: where all prompts are of one length nothing else says it
_WEAK = 0.02
_ERROR = 0.1  # of logarithms; runs that miss by more count for less
_DIFFERENCE = 1e-3  # the simulator's means are not smooth below


@dataclass(frozen=True, slots=True)
class AdditiveSteps:
    """The three numbers above, in seconds."""

    prompt_s: float
    prompt_token_s: float
    sequence_s: float

    def grid(self, max_sequences: int) -> IterationGrid:
        """Tabulate iterations of up to `max_sequences` for the simulator."""
        tokens, batches = np.array([0.0, 1.0, MAX_BATCHED_TOKENS]), np.array([0.0, max_sequences])
        prefill = np.where(tokens > 0, self.prompt_s + self.prompt_token_s * tokens, 0.0)
        time = prefill[:, None] + self.sequence_s * batches
        return IterationGrid(tokens, batches, np.array([1.0, 2.0]), np.repeat(time[:, :, None], 2, axis=2))


def fit_additive(
    input_tokens: Floats, ttft_s: Floats, tpot_s: Floats, predict: Predict, max_sequences: int
) -> AdditiveSteps:
    """Fit the three numbers so that `predict` agrees with measured runs.

    Squares of the logarithms of predicted over measured, linear for large ones (soft L1), are minimised.

    Parameters
    ----------
    input_tokens, ttft_s, tpot_s : (N,)
        Prompt tokens, mean TTFT and mean TPOT of each run.
    predict
        For example the simulator on the arrivals of the runs; a run for which it has no answer (NaN) is left out.
    max_sequences
        That the engine runs at once.

    Raises
    ------
    InputError
        There is no run, or scikit-learn's extra, which brings SciPy, is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise InputError("fitting step times needs SciPy: pip install 'qplan[models]'") from None
    if not len(ttft_s):
        raise InputError("no run under load to fit iteration times to; expected at least one")
    measured = np.log(np.concatenate([ttft_s, tpot_s]))

    def errors(logs: Floats) -> Floats:
        predicted = np.concatenate(predict(AdditiveSteps(*np.exp(logs)).grid(max_sequences)))
        worth = logs[0] - logs[1] - np.log(_PROMPT_TOKENS)
        return np.append(np.nan_to_num(np.log(predicted) - measured), _WEAK * worth)

    token_s = float((ttft_s / input_tokens).min())
    start = np.log([_PROMPT_TOKENS * token_s, token_s, float(tpot_s.min())])
    found = least_squares(errors, start, loss="soft_l1", f_scale=_ERROR, diff_step=[_DIFFERENCE] * 3)
    return AdditiveSteps(*map(float, np.exp(found.x)))
