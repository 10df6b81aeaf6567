"""The lease of a campaign: which process may write its journal."""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qplan.core.errors import StoreError
from qplan.profiles.journal_tables import journal_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa

LEASE_S = 60.0
"""Age of the last sign of life at which the lease of another host's process ends."""

BEAT_S = 10.0
"""Time between two signs of life."""


def take_lease(connection: sa.Connection, campaign: str, token: str, plan: str, store: str) -> None:
    """Make the holder of `token` the campaign's only writer.

    Parameters
    ----------
    connection
        A write transaction.
    token
        Tells this holder from all others.
    plan
        Text of the plan, kept with the campaign.
    store
        Name of the store, for the error.

    Raises
    ------
    StoreError
        Another process holds the lease; the message says which.
    """
    import sqlalchemy as sa

    campaigns = journal_tables().campaigns
    row = connection.execute(sa.select(campaigns).where(campaigns.c.name == campaign)).mappings().first()
    if row is not None and row["holder"] is not None and _lives(dict(row)):
        raise StoreError(
            f"{store}: campaign '{campaign}' is being measured by process {row['pid']} on {row['host']}; "
            "wait for it, stop it, or give this plan another name"
        )
    held = {
        "plan": plan,
        "holder": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": _process_started(os.getpid()),
        "beat": time.time(),
    }
    if row is None:
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        connection.execute(sa.insert(campaigns).values(name=campaign, created=created, **held))
    else:
        connection.execute(sa.update(campaigns).where(campaigns.c.name == campaign).values(**held))


def _lives(row: Mapping[str, Any]) -> bool:
    """Whether the process that holds a lease is still at work."""
    if row["host"] == socket.gethostname():
        return bool(_process_started(row["pid"]) == row["pid_started"])
    return bool(time.time() - row["beat"] < LEASE_S)  # wall clock: the only one that two hosts share


def _process_started(pid: int) -> float | None:
    """Return when a process of this host began, so that a number used again is not taken for it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
