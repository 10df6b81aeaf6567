"""Step times with the coefficients of a calibration: what planners and the simulator run on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qplan.core.errors import InputError
from qplan.models.calibration.calibrated import Correction
from qplan.models.steptimes import FirstToken, Floats, StepTimes

_PARTS = ("weights", "batching", "prefills", "step host")
_MILLISECOND = 1e-3


def corrected_steps(steps: StepTimes, tpot: Correction, ttft: Correction | None = None) -> StepTimes:
    """Return `steps` whose closed and open loops have the TPOT that `tpot` corrects to.

    A decode step becomes ``weights D(1) + batching (D(n) - D(1)) + step host``, a prefill ``prefills P``: what prefills
    cost decoding sequences tells their time better than TTFT, which holds much else. Waits follow, and with them where
    the replica saturates.

    Parameters
    ----------
    ttft
        Correction of the TTFT *on the corrected steps*: what only TTFT's parts know, such as the host's time for a
        request. What closed loops alone have (bursts, turnover) stays behind: plans and forecasts are of open ones.

    Raises
    ------
    InputError
        The correction is of other parts than TPOT's, or TTFT's.
    """
    if tpot.names != _PARTS:
        raise InputError(
            f"step times are corrected by the parts {', '.join(_PARTS)} of TPOT; this correction has "
            f"{', '.join(tpot.names)}"
        )
    weights, batching, prefills, host = tpot.coefficients
    one = _batch_of_one(steps)
    decode_s = weights * one + batching * (steps.decode_s - one) + host * _MILLISECOND
    # What a batch adds may shrink with context by the noise of the tables; a larger iteration never takes less.
    decode_s = np.maximum.accumulate(np.maximum.accumulate(decode_s, axis=2), axis=1)
    prefill_s = prefills * np.maximum.accumulate(steps.prefill_s, axis=1)
    first_token = None if ttft is None else _first_token(ttft, len(decode_s))
    return replace(steps, prefill_s=prefill_s, decode_s=decode_s, first_token=first_token)


def _first_token(ttft: Correction, deployments: int) -> FirstToken:
    found = dict(zip(ttft.names, ttft.coefficients, strict=True))
    try:
        prefill, step, queue, slots, host = (
            np.full(deployments, found[name]) for name in ("prefill", "step", "queue", "slots", "host")
        )
    except KeyError as error:
        raise InputError(f"a correction of TTFT needs the part {error}; this one has {', '.join(found)}") from None
    # The part holds a whole iteration, of which half is left in the mean.
    return FirstToken(prefill, 2 * step, queue, slots, host * _MILLISECOND)


def _batch_of_one(steps: StepTimes) -> Floats:
    """Return the decode time of one sequence, (D, 1, C), at every context of the grid."""
    # Like reading between the points: below the grid the first value holds.
    at = int(np.searchsorted(steps.batches, 1.0)) if 1.0 in steps.batches else 0
    return steps.decode_s[:, at : at + 1]
