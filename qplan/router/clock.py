"""The time of day, by which a policy lets requests wait: its periods begin at midnight by local time."""

from __future__ import annotations

import time


def since_midnight_s() -> float:
    """Return the seconds of the day so far by local time."""
    now = time.localtime()
    return float(3600 * now.tm_hour + 60 * now.tm_min + now.tm_sec)
