"""A growing queue, told from one that is merely busy.

Arrivals of a stationary system leave as fast as they come, so the number in flight wanders without a trend. At a rate
beyond capacity it grows by ``(arrivals - departures) t``, while chance moves it by no more than the order of
``sqrt(arrivals t)``, even at a load of exactly 1. Growth of several times that is overload.
"""

from __future__ import annotations

import numpy as np

from qplan.measure.load.requests import Floats

_DEVIATIONS = 4.0
_SETTLED = 0.9


def queue_grows(scheduled_s: Floats, ended_s: Floats, now_s: float, *, burstiness: float = 1.0) -> bool:
    """Say whether requests pile up beyond doubt.

    The number in flight at `now_s` is compared with that at a third of the time. By that third the server must have
    finished the very first requests: until then, requests pile up in the best of servers.

    Parameters
    ----------
    scheduled_s
        Arrivals until `now_s`, shape ``(n,)``.
    ended_s
        When each was over, NaN or later than `now_s` for one that is in flight, shape ``(n,)``.
    now_s
        Seconds since the start of the run.
    burstiness
        Coefficient of variation of the gaps between arrivals, 1 for Poisson.
    """
    early_s = now_s / 3
    first = scheduled_s <= early_s / 4
    if not first.any() or (ended_s[first] <= early_s).mean() < _SETTLED:
        return False
    early = scheduled_s <= early_s
    before = int(early.sum()) - int((ended_s <= early_s).sum())
    arrived = scheduled_s <= now_s
    in_flight = int(arrived.sum()) - int((ended_s <= now_s).sum())
    chance = np.sqrt(int(arrived.sum()) - int(early.sum())) * max(burstiness, 1.0)
    return bool(in_flight - before > _DEVIATIONS * chance)
