"""Requests as a compact block of bytes for the store: to the microsecond, a few bytes a chunk, no pickle.

::

    "QPR1" | length of the header (4 bytes, big-endian) | header: JSON | zlib of all columns

Times are whole microseconds and kept as differences (to the schedule, to sending, to the chunk before), which are small
integers; each column is as wide as its largest needs, and its bytes are stored by significance, which compresses well.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np

from qplan.core.errors import StoreError
from qplan.measure.load.requests import Floats, Ints, Requests

_MAGIC = b"QPR1"
_LENGTH = struct.Struct(">I")
_WIDTHS = (1, 2, 4, 8)


def encode_requests(requests: Requests) -> bytes:
    """Encode to the microsecond; the inverse of :func:`decode_requests`."""
    scheduled, sent, end = _us(requests.scheduled_s), _us(requests.sent_s), _us(requests.end_s)
    counts = np.diff(requests.offsets)
    columns = {
        "index": np.diff(requests.index, prepend=0),
        "scheduled": np.diff(scheduled, prepend=0),
        "sent": sent - scheduled,
        "end": end - sent,
        "chunks": counts,
        "chunk": np.diff(_us(requests.chunk_s), prepend=0),
        "input_tokens": requests.input_tokens,
        "output_tokens": requests.output_tokens,
        "asked_tokens": requests.asked_tokens,
        "outcome": requests.outcome,
        "reason": np.zeros(len(requests), np.int64),
    }
    reasons = sorted(set(requests.reason))
    number = {reason: place for place, reason in enumerate(reasons)}
    columns["reason"] = np.array([number[reason] for reason in requests.reason], np.int64)
    columns["chunk"] = _from_sending(columns["chunk"], _us(requests.chunk_s), np.repeat(sent, counts), counts)
    header: dict[str, Any] = {
        "columns": [],
        "reasons": reasons,
        "origin_s": requests.origin_s,
        "cpu_s": requests.cpu_s,
        "processes": requests.processes,
    }
    body = []
    for name, column in columns.items():
        width = _width(column)
        header["columns"].append([name, len(column), width])
        body.append(column.astype(f"<i{width}").view(np.uint8).reshape(-1, width).T.tobytes())
    head = json.dumps(header, separators=(",", ":")).encode()
    return _MAGIC + _LENGTH.pack(len(head)) + head + zlib.compress(b"".join(body))


def decode_requests(data: bytes) -> Requests:
    """Decode what :func:`encode_requests` made.

    Raises
    ------
    StoreError
        It is something else, or damaged.
    """
    if data[:4] != _MAGIC:
        raise StoreError(f"not a record of requests: it starts with {data[:4]!r}, not {_MAGIC!r}")
    try:
        (length,) = _LENGTH.unpack(data[4:8])
        header = json.loads(data[8 : 8 + length])
        body = zlib.decompress(data[8 + length :])
        columns, at = {}, 0
        for name, count, width in header["columns"]:
            if width not in _WIDTHS or at + count * width > len(body):
                raise ValueError(f"column {name} does not fit")
            raw = np.frombuffer(body, np.uint8, count * width, at).reshape(width, count).T
            columns[name] = np.ascontiguousarray(raw).view(f"<i{width}").reshape(-1).astype(np.int64)
            at += count * width
        return _requests(columns, header)
    except (ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise StoreError(f"damaged record of requests: {error}") from None


def _requests(columns: dict[str, Ints], header: dict[str, Any]) -> Requests:
    scheduled = np.cumsum(columns["scheduled"])
    sent = scheduled + columns["sent"]
    counts = columns["chunks"]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    running = np.cumsum(columns["chunk"])
    # Each request's chunks start over from its sending time: take off what ran up before them.
    before = np.concatenate([[0], running])[offsets[:-1]]
    chunk = running + np.repeat(sent - before, counts)
    return Requests(
        np.cumsum(columns["index"]),
        scheduled / 1e6,
        sent / 1e6,
        (sent + columns["end"]) / 1e6,
        chunk / 1e6,
        offsets,
        columns["input_tokens"],
        columns["output_tokens"],
        columns["asked_tokens"],
        columns["outcome"],
        tuple(header["reasons"][place] for place in columns["reason"].tolist()),
        float(header["origin_s"]),
        float(header["cpu_s"]),
        int(header["processes"]),
    )


def _from_sending(gaps: Ints, chunk: Ints, sent: Ints, counts: Ints) -> Ints:
    """Return `gaps` with each request's first one counted from its sending."""
    first = (np.cumsum(counts) - counts)[counts > 0]
    gaps = gaps.copy()
    gaps[first] = chunk[first] - sent[first]
    return gaps


def _us(times_s: Floats) -> Ints:
    return np.rint(times_s * 1e6).astype(np.int64)


def _width(column: Ints) -> int:
    largest = int(np.abs(column).max(initial=0))
    return next(width for width in _WIDTHS if largest < 1 << (8 * width - 1))
