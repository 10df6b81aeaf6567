"""Whether a run shows the server, or only how slow its client was.

What tells the two apart: an overloaded *server* answers late, yet an open-loop client goes on sending on time, with CPU
to spare. An overloaded *client* sends late, at less than the rate asked, uses all of its CPU, or runs into its own
machine's limits. Late answers alone therefore never make a run invalid; late sending always does.
"""

from __future__ import annotations

import numpy as np

from qplan.measure.load.requests import CLIENT_LIMIT, Requests

LAG_S = 0.02
"""Lag that is always tolerated: a scheduler's time slices on a busy machine come to that."""

LAG_SHARE = 0.1
"""Lag tolerated as a share of the 90th percentile of TTFT: it stands for the error in arrival times and in TTFT."""

ACHIEVED_SHARE = 0.98
"""Least rate of sending over the rate of the schedule."""

CPU_SHARE = 0.9
"""Most CPU that a client process may use of its one core."""

_FEWEST_FOR_RATE = 20
_SHORTEST_FOR_CPU_S = 2.0


def bottleneck(requests: Requests) -> str | None:
    """Say in which way the client limited the run; ``None`` where it did not."""
    if not len(requests):
        return None
    limited = [reason for reason in requests.reason if reason.startswith(CLIENT_LIMIT)]
    if limited:
        return f"{limited[0].removeprefix('client: ')} on the client's machine ({len(limited)} requests)"
    # The order statistic below the 99th percentile: a single hiccup among a hundred requests is no bottleneck.
    lag_s = float(np.percentile(requests.lag_s, 99, method="lower"))
    answered = requests.ttft_s[np.isfinite(requests.ttft_s)]
    tolerated_s = max(LAG_S, LAG_SHARE * float(np.percentile(answered, 90)) if len(answered) else 0.0)
    if lag_s > tolerated_s:
        return f"the client sent late: 99th percentile {lag_s * 1e3:.0f} ms, tolerated {tolerated_s * 1e3:.0f} ms"
    if len(requests) >= _FEWEST_FOR_RATE:
        share = float(np.ptp(requests.scheduled_s) / np.ptp(requests.sent_s))
        if share < ACHIEVED_SHARE:
            return f"the client sent at {share:.1%} of the rate asked for"
    took_s = float(np.max(requests.end_s))
    cores = requests.cpu_s / took_s / requests.processes if took_s >= _SHORTEST_FOR_CPU_S else 0.0
    if cores > CPU_SHARE:
        return f"the client used {cores:.0%} of its CPU; send from more processes"
    return None
