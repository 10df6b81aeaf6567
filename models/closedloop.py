"""A replica under a closed loop: a fixed number of requests always in flight, as most benchmarks drive it.

With ``N`` requests in flight a decode step of all of them takes ``D(N)``, and between two of its tokens a sequence
sees its share of the others' prefills: TPOT is ``D(N) + (N - 1) P / L``. TTFT is the residual of the running
iteration, the wait for prefills ahead and the own one; prefill is a station of a closed network whose other station
is decoding, solved by mean-value analysis (Reiser & Lavenberg 1980). Requests are taken to come at random moments, as
under the open loop that plans are made for. A benchmark whose requests are all of one length keeps them in step, and
then they wait for one another's prefills: up to ``(N + 1) / 2`` of them on average.
"""

from __future__ import annotations

import numpy as np

from qplan.models.steptimes import Floats, StepTimes


def closed_loop(steps: StepTimes, input_tokens: float, output_tokens: float, concurrency: int) -> tuple[Floats, Floats]:
    """Return mean TTFT and mean TPOT, (D,) seconds each, of requests of one length at `concurrency`.

    `output_tokens` is at least 2: a single token has no TPOT.
    """
    decodes = output_tokens - 1
    prefill = steps.prefill(np.array([input_tokens]))[:, 0]
    by_batch = steps.decode_by_batch(input_tokens + output_tokens / 2)
    step = np.array([np.interp(concurrency, steps.batches, row) for row in by_batch])
    tpot = step + (concurrency - 1) * prefill / decodes
    queue = np.zeros_like(prefill)
    response = prefill
    for requests in range(1, concurrency + 1):
        response = prefill * (1 + queue)
        queue = response * requests / (response + decodes * tpot)
    return (step / 2 if concurrency > 1 else 0) + response, tpot
