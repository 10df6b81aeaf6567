"""Step times with the coefficients of a calibration: what planners and the simulator run on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qplan.core.errors import InputError
from qplan.models.calibration.calibrated import Correction
from qplan.models.steptimes import Floats, StepTimes

_PARTS = ("weights", "batching", "prefills", "step host")


def corrected_steps(steps: StepTimes, tpot: Correction) -> StepTimes:
    """Return `steps` whose closed and open loops have the TPOT that `tpot` corrects to.

    A decode step becomes ``weights D(1) + batching (D(n) - D(1)) + step host``, a prefill ``prefills P``: what prefills
    cost decoding sequences tells their time better than TTFT, which holds much else. Waits follow, and with them where
    the replica saturates; what only TTFT's parts know (host time a request, bursts of a closed loop) has no place here.

    Raises
    ------
    InputError
        The correction is of other parts than TPOT's.
    """
    if tpot.names != _PARTS:
        raise InputError(
            f"step times are corrected by the parts {', '.join(_PARTS)} of TPOT; this correction has "
            f"{', '.join(tpot.names)}"
        )
    weights, batching, prefills, host = tpot.coefficients
    one = _batch_of_one(steps)
    decode_s = weights * one + batching * (steps.decode_s - one) + host * 1e-3
    # What a batch adds may shrink with context by the noise of the tables; a larger iteration never takes less.
    decode_s = np.maximum.accumulate(np.maximum.accumulate(decode_s, axis=2), axis=1)
    return replace(steps, prefill_s=prefills * steps.prefill_s, decode_s=decode_s)


def _batch_of_one(steps: StepTimes) -> Floats:
    """Return the decode time of one sequence, (D, 1, C), at every context of the grid."""
    one: Floats = np.stack([steps.decode_by_batch(float(context)) for context in steps.contexts], axis=2)
    below = np.searchsorted(steps.batches, 1.0)
    if below < len(steps.batches) and steps.batches[below] == 1.0:
        return one[:, below : below + 1]
    return one[:, :1]  # like reading between the points: below the grid the first value holds
