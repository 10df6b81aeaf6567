"""What a campaign's journal holds for a pack beside its observations: the requests, and what the weights were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError
from qplan.measure.campaign.points import LOAD, QUALITY
from qplan.measure.engines.random_model import RANDOM
from qplan.measure.load.encoding import decode_requests
from qplan.measure.load.metrics import Window
from qplan.measure.load.requests import NOT_SAID, Ints, Outcome, Requests
from qplan.profiles.journal import CLOSED_STATES
from qplan.profiles.journal_tables import journal_tables
from qplan.profiles.timestamps import schema

if TYPE_CHECKING:
    import pyarrow as pa

    from qplan.profiles.store import ProfileStore

_ROUNDING_S = 0.6e-6  # requests are kept to the microsecond, windows are not


@dataclass(frozen=True, slots=True)
class _Closed:
    """A point that is over, as its journal has it."""

    source: str
    spec: Mapping[str, Any]
    metrics: Mapping[str, Any]
    raw: bytes | None


def requests_of(store: ProfileStore) -> pa.Table:
    """Return the requests of every load that a campaign measured into `store` (:mod:`qplan.profiles.timestamps`).

    Probes of searches are left out: they have no observation of their own.

    Raises
    ------
    InputError
        The store has no campaign, or none of its loads was measured.
    """
    import pyarrow as pa

    points = [one for one in _closed(store) if one.spec["kind"] == LOAD and one.raw is not None]
    if not points:
        raise InputError(f"{store} has no load that a campaign measured: no requests to keep beside the pack")
    return pa.concat_tables([_table(one) for one in points])


def notes_of(store: ProfileStore) -> tuple[str, ...]:
    """Return what a pack's card must say of the weights that a store's campaigns served; nothing of real ones."""
    closed = list(_closed(store))
    made_up = {_model(one.spec) for one in closed if one.spec["target"]["weights"].partition(":")[0] == RANDOM}
    if not made_up:
        return ()
    judged = {_model(one.spec) for one in closed if one.spec["kind"] == QUALITY} & made_up
    quality = f"scores of {', '.join(sorted(judged))} say nothing" if judged else "quality was not measured on them"
    return (
        f"The weights of {', '.join(sorted(made_up))} are random, of the models' shapes: latency, power and energy "
        f"depend on the shapes; {quality}.",
    )


def _closed(store: ProfileStore) -> Iterator[_Closed]:
    """Yield the points of all campaigns whose last attempt came to an end, in the order of their names and keys."""
    import sqlalchemy as sa

    tables = journal_tables()
    points, attempts = tables.points, tables.attempts
    last = (
        sa.select(attempts.c.campaign, attempts.c.key, sa.func.max(attempts.c.attempt).label("attempt"))
        .where(attempts.c.state.in_(CLOSED_STATES))
        .group_by(attempts.c.campaign, attempts.c.key)
        .subquery()
    )
    query = (
        sa.select(points.c.campaign, points.c.key, points.c.spec, attempts.c.metrics, attempts.c.raw)
        .join(last, (last.c.campaign == points.c.campaign) & (last.c.key == points.c.key))
        .join(
            attempts,
            (attempts.c.campaign == last.c.campaign)
            & (attempts.c.key == last.c.key)
            & (attempts.c.attempt == last.c.attempt),
        )
        .where(points.c.state.in_(CLOSED_STATES))
        .order_by(points.c.campaign, points.c.key)
    )
    with store.transaction(write=False) as connection:
        if not sa.inspect(connection).has_table(points.name):
            return
        for campaign, key, spec, metrics, raw in connection.execute(query):
            source = f"campaign {campaign} point {key[:12]}"
            yield _Closed(source, json.loads(spec), json.loads(metrics or "{}"), None if raw is None else bytes(raw))


def _model(spec: Mapping[str, Any]) -> str:
    return str(spec["target"]["model"])


def _table(point: _Closed) -> pa.Table:
    import pyarrow as pa

    assert point.raw is not None
    requests = decode_requests(point.raw)
    first_s = requests.first_token_s
    columns: dict[str, Any] = {
        "point": [point.source] * len(requests),
        "scheduled_us": _us(requests.scheduled_s),
        "lag_us": _us(requests.lag_s),
        "first_token_us": _us(requests.ttft_s),
        "last_token_us": _us(_last_s(requests) - first_s),
        "input_tokens": _told(requests.input_tokens),
        "output_tokens": _told(requests.output_tokens),
        "outcome": [Outcome(code).name.lower() for code in requests.outcome.tolist()],
        "steady": _steady(requests, point.metrics),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema()], schema=schema())


def _steady(requests: Requests, metrics: Mapping[str, Any]) -> Any:
    start_s, end_s = metrics["window_s"]
    return Window(start_s - _ROUNDING_S, end_s + _ROUNDING_S).holds(requests.scheduled_s)


def _last_s(requests: Requests) -> Any:
    """Return when the last content of each request arrived, (n,); NaN where none did."""
    counts = np.diff(requests.offsets)
    if not len(requests.chunk_s):
        return np.full(len(requests), np.nan)
    return np.where(counts > 0, requests.chunk_s[np.maximum(requests.offsets[1:] - 1, 0)], np.nan)


def _us(times_s: Any) -> Any:
    """Return whole microseconds, null where there is none."""
    import pyarrow as pa

    missing = np.isnan(times_s)
    return pa.array(np.rint(np.where(missing, 0.0, times_s) * 1e6).astype(np.int64), mask=missing)


def _told(tokens: Ints) -> Any:
    import pyarrow as pa

    return pa.array(tokens, mask=tokens == NOT_SAID)
