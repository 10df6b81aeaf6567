"""The journal of a campaign, in the same store as its observations: what is to do, being done, done, or failed.

::

    open ──► [ start ──► probe* ──► retry | finish ]* ──► close
    lease      running     kept      pending  done, failed or invalid, with the observations and the raw
    taken                                     request records: one transaction, or nothing of it

A process that dies at any moment leaves points that are finished or not: never half of one, never two. One process
at a time holds a campaign's lease and every write checks that it still does. The lease of a dead process of this
host is taken over at once, that of another host when its sign of life is :data:`~qplan.profiles.lease.LEASE_S` old.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qplan.core.errors import StoreError
from qplan.profiles.journal_tables import journal_tables, make_tables
from qplan.profiles.lease import BEAT_S, take_lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    import sqlalchemy as sa

    from qplan.profiles.store import ProfileStore


OPEN_STATES = ("pending", "running")
CLOSED_STATES = ("done", "failed", "invalid")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a point stands.

    Attributes
    ----------
    state
        ``pending``, ``running``, ``done``, ``failed`` or ``invalid``.
    attempts
        Times that it was tried and came to an end; what a kill cut short does not count.
    seconds
        How long the attempt that closed it took; ``None`` before.
    """

    state: str
    attempts: int
    reason: str | None
    seconds: float | None


class Journal:
    """The journal of one campaign; a context manager that holds the campaign's lease.

    Parameters
    ----------
    store
        Where it is kept, beside the observations.
    campaign
        Name that tells the campaign from others in the store.

    Notes
    -----
    Every write raises :class:`~qplan.core.errors.StoreError` when another process has taken the lease over.
    """

    def __init__(self, store: ProfileStore, campaign: str) -> None:
        self.store = store
        self.campaign = campaign
        self._token = uuid.uuid4().hex
        self._closing = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, plan: str, points: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        """Take the lease and enter the points that are not there yet.

        Parameters
        ----------
        plan
            Text of the plan file, kept for provenance.
        points
            What gives the specification of each point, by key; a key that is there keeps its state.

        Raises
        ------
        StoreError
            Another process measures this campaign.
        """
        import sqlalchemy as sa

        tables = journal_tables()
        with self.store.transaction(write=True) as connection:
            make_tables(connection, str(self.store))
            take_lease(connection, self.campaign, self._token, plan, str(self.store))
            kept = self._interrupted(connection)
            rows = [
                {"campaign": self.campaign, "key": key, "spec": json.dumps(describe(), sort_keys=True)}
                for key, describe in points.items()
                if key not in kept
            ]
            if rows:
                connection.execute(sa.insert(tables.points), rows)
        self._beating = threading.Thread(target=self._beat, name="qplan-journal", daemon=True)
        self._beating.start()

    def close(self) -> None:
        """Give the lease back; may be called twice."""
        import sqlalchemy as sa

        if self._beating is None:
            return
        self._closing.set()
        self._beating.join()
        self._beating = None
        campaigns = journal_tables().campaigns
        with self.store.transaction(write=True) as connection:
            ours = (campaigns.c.name == self.campaign) & (campaigns.c.holder == self._token)
            connection.execute(sa.update(campaigns).where(ours).values(holder=None, beat=None))

    def standings(self) -> dict[str, Standing]:
        """Return where each point of the campaign stands, by key; none where there is no such campaign yet."""
        import sqlalchemy as sa

        points = journal_tables().points
        query = sa.select(points.c.key, points.c.state, points.c.attempts, points.c.reason, points.c.seconds)
        if not self.store.exists():
            return {}
        with self.store.transaction(write=False) as connection:
            if not sa.inspect(connection).has_table(points.name):
                return {}
            rows = connection.execute(query.where(points.c.campaign == self.campaign)).all()
        return {key: Standing(state, attempts, reason, seconds) for key, state, attempts, reason, seconds in rows}

    def start(self, key: str) -> int:
        """Mark a point as running; return the number of this attempt, from 0."""
        import sqlalchemy as sa

        tables = journal_tables()
        with self._held() as connection:
            mine = (tables.attempts.c.campaign == self.campaign) & (tables.attempts.c.key == key)
            number = connection.scalar(sa.select(sa.func.count()).select_from(tables.attempts).where(mine)) or 0
            self._update_point(connection, key, state="running")
            connection.execute(
                sa.insert(tables.attempts).values(
                    campaign=self.campaign, key=key, attempt=number, state="running", started=_now()
                )
            )
        return int(number)

    def retry(self, key: str, attempt: int, *, reason: str, last_lines: Sequence[str] = ()) -> None:
        """Record that an attempt failed and that the point is to be tried again."""
        with self._held() as connection:
            self._end_attempt(
                connection, key, attempt, "failed", reason=reason, last_lines=json.dumps(list(last_lines))
            )
            self._update_point(connection, key, state="pending", counts=True)

    def put_back(self, key: str, attempt: int) -> None:
        """Record that an attempt was stopped on request; the point is pending as if it had not begun."""
        with self._held() as connection:
            self._end_attempt(connection, key, attempt, "interrupted")
            self._update_point(connection, key, state="pending")

    def finish(
        self,
        key: str,
        attempt: int,
        *,
        state: str,
        rows: Sequence[Mapping[str, Any]],
        reason: str | None = None,
        raw: bytes | None = None,
        metrics: Mapping[str, Any] | None = None,
        last_lines: Sequence[str] = (),
        seconds: float | None = None,
    ) -> None:
        """Close a point: its observations, its raw records and its state, in one transaction.

        Parameters
        ----------
        state
            ``done``, ``failed`` or ``invalid``.
        rows
            Observations, as column values, written by :meth:`~qplan.profiles.store.ProfileStore.put`: they replace
            what this point left before.
        raw
            Request records (:meth:`qplan.measure.load.records.Requests.to_bytes`).
        metrics
            Whatever else later points need to know: the window, per-item results of a quality task.
        seconds
            How long the attempt took.
        """
        if state not in CLOSED_STATES:
            raise ValueError(f"state {state!r}; expected one of {', '.join(CLOSED_STATES)}")
        with self._held() as connection:
            self.store.put(connection, rows, where=f"campaign {self.campaign}")
            self._end_attempt(
                connection,
                key,
                attempt,
                state,
                reason=reason,
                raw=raw,
                metrics=None if metrics is None else json.dumps(metrics, sort_keys=True),
                last_lines=json.dumps(list(last_lines)),
            )
            self._update_point(connection, key, state=state, reason=reason, seconds=seconds, counts=True)

    def reopen(self, states: Sequence[str]) -> int:
        """Make closed points of these states pending again; return how many."""
        import sqlalchemy as sa

        points = journal_tables().points
        with self._held() as connection:
            chosen = (points.c.campaign == self.campaign) & points.c.state.in_(list(states))
            update = sa.update(points).where(chosen).values(state="pending", attempts=0, reason=None, seconds=None)
            return int(connection.execute(update).rowcount)

    def add_probe(self, key: str, document: Mapping[str, Any], raw: bytes = b"") -> None:
        """Keep one probe of a saturation search and its request records; a killed search resumes after it."""
        import sqlalchemy as sa

        probes = journal_tables().probes
        with self._held() as connection:
            mine = (probes.c.campaign == self.campaign) & (probes.c.key == key)
            number = connection.scalar(sa.select(sa.func.count()).select_from(probes).where(mine)) or 0
            connection.execute(
                sa.insert(probes).values(
                    campaign=self.campaign,
                    key=key,
                    number=number,
                    result=json.dumps(document, sort_keys=True),
                    raw=raw,
                )
            )

    def probes(self, key: str) -> list[Mapping[str, Any]]:
        """Return the probes of a saturation point so far, in order."""
        import sqlalchemy as sa

        probes = journal_tables().probes
        mine = (probes.c.campaign == self.campaign) & (probes.c.key == key)
        with self.store.transaction(write=False) as connection:
            found = connection.scalars(sa.select(probes.c.result).where(mine).order_by(probes.c.number)).all()
        return [json.loads(text) for text in found]

    def metrics(self, key: str) -> dict[str, Any] | None:
        """Return the metrics that closed a point, or ``None`` where there are none."""
        text = self._of_last_attempt(key, "metrics")
        return None if text is None else dict(json.loads(text))

    def raw(self, key: str) -> bytes | None:
        """Return the request records that closed a point, or ``None`` where there are none."""
        blob = self._of_last_attempt(key, "raw")
        return None if blob is None else bytes(blob)

    def attempts(self, key: str) -> list[dict[str, Any]]:
        """Return every attempt at a point: its number, state, reason and the engine's last lines."""
        import sqlalchemy as sa

        attempts = journal_tables().attempts
        mine = (attempts.c.campaign == self.campaign) & (attempts.c.key == key)
        query = sa.select(attempts.c.attempt, attempts.c.state, attempts.c.reason, attempts.c.last_lines)
        with self.store.transaction(write=False) as connection:
            rows = connection.execute(query.where(mine).order_by(attempts.c.attempt)).all()
        return [
            {"attempt": number, "state": state, "reason": reason, "last_lines": json.loads(lines or "[]")}
            for number, state, reason, lines in rows
        ]

    def _of_last_attempt(self, key: str, column: str) -> Any:
        import sqlalchemy as sa

        attempts = journal_tables().attempts
        mine = (attempts.c.campaign == self.campaign) & (attempts.c.key == key)
        closed = mine & attempts.c.state.in_(CLOSED_STATES)
        query = sa.select(attempts.c[column]).where(closed).order_by(attempts.c.attempt.desc()).limit(1)
        with self.store.transaction(write=False) as connection:
            return connection.scalar(query)

    def _interrupted(self, connection: sa.Connection) -> set[str]:
        """Put back what a killed process was at; return the keys of all points that are there."""
        import sqlalchemy as sa

        tables = journal_tables()
        for table, state in ((tables.points, "pending"), (tables.attempts, "interrupted")):
            cut_short = (table.c.campaign == self.campaign) & (table.c.state == "running")
            connection.execute(sa.update(table).where(cut_short).values(state=state))
        kept = sa.select(tables.points.c.key).where(tables.points.c.campaign == self.campaign)
        return set(connection.scalars(kept))

    @contextmanager
    def _held(self) -> Iterator[sa.Connection]:
        """Hold a write transaction in which the lease is ours."""
        import sqlalchemy as sa

        campaigns = journal_tables().campaigns
        with self.store.transaction(write=True) as connection:
            holder = connection.scalar(sa.select(campaigns.c.holder).where(campaigns.c.name == self.campaign))
            if holder != self._token:
                raise StoreError(f"{self.store}: another process took campaign '{self.campaign}' over")
            yield connection

    def _update_point(
        self, connection: sa.Connection, key: str, *, state: str, counts: bool = False, **values: Any
    ) -> None:
        import sqlalchemy as sa

        points = journal_tables().points
        mine = (points.c.campaign == self.campaign) & (points.c.key == key)
        attempts = points.c.attempts + 1 if counts else points.c.attempts
        connection.execute(sa.update(points).where(mine).values(state=state, attempts=attempts, **values))

    def _end_attempt(self, connection: sa.Connection, key: str, attempt: int, state: str, **values: Any) -> None:
        import sqlalchemy as sa

        attempts = journal_tables().attempts
        mine = (attempts.c.campaign == self.campaign) & (attempts.c.key == key) & (attempts.c.attempt == attempt)
        connection.execute(sa.update(attempts).where(mine).values(state=state, ended=_now(), **values))

    def _beat(self) -> None:
        """Renew the lease until it is given back, or lost: the next write then says so."""
        import sqlalchemy as sa

        campaigns = journal_tables().campaigns
        ours = (campaigns.c.name == self.campaign) & (campaigns.c.holder == self._token)
        while not self._closing.wait(BEAT_S):
            try:
                with self.store.transaction(write=True) as connection:
                    connection.execute(sa.update(campaigns).where(ours).values(beat=time.time()))
            except StoreError:
                continue  # a busy store: there are more beats than the lease needs


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
