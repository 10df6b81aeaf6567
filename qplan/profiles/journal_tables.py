"""The tables that a campaign's journal adds to a store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from qplan.core.errors import StoreError
from qplan.profiles.store import meta_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

JOURNAL_VERSION = 1

_VERSION_KEY = "journal_version"


@dataclass(frozen=True, slots=True)
class Tables:
    """The campaigns, their points, the attempts at each point, and the probes of each saturation search."""

    campaigns: sa.Table
    points: sa.Table
    attempts: sa.Table
    probes: sa.Table


@cache
def journal_tables() -> Tables:
    """Return the tables of the journal."""
    import sqlalchemy as sa

    together = sa.MetaData()

    def table(name: str, keys: Sequence[tuple[str, Any]], *columns: sa.Column[Any]) -> sa.Table:
        primary = (sa.Column(column, kind, primary_key=True) for column, kind in keys)
        return sa.Table(name, together, *primary, *columns)

    point = (("campaign", sa.Text), ("key", sa.String(64)))
    return Tables(
        campaigns=table(
            "campaigns",
            (("name", sa.Text),),
            sa.Column("plan", sa.Text, nullable=False),
            sa.Column("created", sa.Text, nullable=False),
            sa.Column("holder", sa.Text),
            sa.Column("host", sa.Text),
            sa.Column("pid", sa.BigInteger),
            sa.Column("pid_started", sa.Double),
            sa.Column("beat", sa.Double),
        ),
        points=table(
            "campaign_points",
            point,
            sa.Column("spec", sa.Text, nullable=False),
            sa.Column("state", sa.Text, nullable=False, default="pending"),
            sa.Column("attempts", sa.BigInteger, nullable=False, default=0),
            sa.Column("reason", sa.Text),
            sa.Column("seconds", sa.Double),
        ),
        attempts=table(
            "campaign_attempts",
            (*point, ("attempt", sa.BigInteger)),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("started", sa.Text, nullable=False),
            sa.Column("ended", sa.Text),
            sa.Column("reason", sa.Text),
            sa.Column("raw", sa.LargeBinary),
            sa.Column("metrics", sa.Text),
            sa.Column("last_lines", sa.Text),
        ),
        probes=table(
            "campaign_probes",
            (*point, ("number", sa.BigInteger)),
            sa.Column("result", sa.Text, nullable=False),
            sa.Column("raw", sa.LargeBinary),
        ),
    )


def make_tables(connection: sa.Connection, store: str) -> None:
    """Make the journal's tables where a store has none; refuse those of a newer qplan."""
    import sqlalchemy as sa

    meta = meta_table()
    version = connection.scalar(sa.select(meta.c.value).where(meta.c.key == _VERSION_KEY))
    if version is None:
        journal_tables().campaigns.metadata.create_all(connection)
        connection.execute(sa.insert(meta).values(key=_VERSION_KEY, value=str(JOURNAL_VERSION)))
    elif int(version) > JOURNAL_VERSION:
        raise StoreError(f"{store}: journal version {version} is newer than this qplan's {JOURNAL_VERSION}; upgrade")
